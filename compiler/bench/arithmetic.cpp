// How much arithmetic this machine does.
//
// A multiplication and an addition are two operations. Each kind runs on registers alone, in enough independent chains
// to hide the latency of the instruction; the best of many short spans counts. 0: the instructions are not there.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <thread>
#include <utility>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kChains = 12, kRounds = 20000;

#if defined(__AVX512F__)
struct Float {
    static constexpr double operations = 32;
    using Lanes = __m512;
    static Lanes zero() { return _mm512_setzero_ps(); }
    static Lanes step(Lanes sum) { return _mm512_fmadd_ps(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f), sum); }
};
#elif defined(__AVX2__) && defined(__FMA__)
struct Float {
    static constexpr double operations = 16;
    using Lanes = __m256;
    static Lanes zero() { return _mm256_setzero_ps(); }
    static Lanes step(Lanes sum) { return _mm256_fmadd_ps(_mm256_set1_ps(0.5f), _mm256_set1_ps(0.25f), sum); }
};
#else
struct Float {
    static constexpr double operations = 8;
    using Lanes [[gnu::vector_size(16)]] = float;
    static Lanes zero() { return Lanes{}; }
    static Lanes step(Lanes sum) { return sum + Lanes{0.5f, 0.5f, 0.5f, 0.5f} * 0.25f; }
};
#endif

#if defined(__AVX512BF16__)
struct Bfloat {
    static constexpr double operations = 64;
    using Lanes = __m512;
    static Lanes zero() { return _mm512_setzero_ps(); }
    static Lanes step(Lanes sum) {
        const auto half = (__m512bh)_mm512_set1_epi16(0x3f00);
        return _mm512_dpbf16_ps(sum, half, half);
    }
};
#endif

#if defined(__AVX512VNNI__)
struct Int8 {
    static constexpr double operations = 128;
    using Lanes = __m512i;
    static Lanes zero() { return _mm512_setzero_si512(); }
    static Lanes step(Lanes sum) { return _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(3), _mm512_set1_epi8(2)); }
};
#endif

template <class Lanes>
void keep(Lanes& lanes) {
#if defined(__AVX2__)
    asm volatile("" : "+v"(lanes));
#else
    asm volatile("" : "+m"(lanes));
#endif
}

// Constant indices, so that the chains stay in registers; `keep`, so that each step stays one instruction.
template <class Kind, size_t... chain>
void span(std::index_sequence<chain...>) {
    typename Kind::Lanes sums[kChains] = {((void)chain, Kind::zero())...};
    for (int round = 0; round < kRounds; ++round) ((sums[chain] = Kind::step(sums[chain]), keep(sums[chain])), ...);
}

template <class Kind>
double best_rate(int threads, double seconds) {
    std::barrier meet(threads);
    bool done = false;
    double best = 0;
    auto work = [&](int thread) {
        const auto until = Clock::now() + std::chrono::duration<double>(seconds);
        while (!done) {
            meet.arrive_and_wait();
            const auto began = Clock::now();
            span<Kind>(std::make_index_sequence<kChains>());
            meet.arrive_and_wait();
            if (thread == 0) {
                const auto now = Clock::now();
                const double elapsed = std::chrono::duration<double>(now - began).count();
                best = std::max(best, Kind::operations * kChains * kRounds * threads / elapsed);
                done = now >= until;
            }
            meet.arrive_and_wait();
        }
    };
    std::vector<std::thread> team;
    for (int thread = 1; thread < threads; ++thread) team.emplace_back(work, thread);
    work(0);
    for (auto& thread : team) thread.join();
    return best;
}

}  // namespace

// Operations per second of "float32" (0), "bfloat16" (1) or "int8" (2) on so many threads.
extern "C" [[gnu::visibility("default")]] double arithmetic(int threads, double seconds, int kind) {
    switch (kind) {
        case 0: return best_rate<Float>(threads, seconds);
#if defined(__AVX512BF16__)
        case 1: return best_rate<Bfloat>(threads, seconds);
#endif
#if defined(__AVX512VNNI__)
        case 2: return best_rate<Int8>(threads, seconds);
#endif
        default: return 0;
    }
}
