// How fast this machine streams memory.
//
// Decoding one token reads every weight once, so this is what bounds it. Each thread reads its own half of a buffer that
// no cache holds, in four streams (a core follows several at once), and the best pass counts. Once with pages of 4 KiB and
// once with huge pages, as the second saves address translations.
#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Lanes [[gnu::vector_size(64), gnu::may_alias]] = uint64_t;
constexpr size_t kStreams = 4;

// The exclusive or of all bytes: cheap, and the compiler cannot leave it out.
uint64_t read_all(const std::byte* data, size_t bytes) {
    const size_t part = bytes / kStreams / 256 * 256;
    Lanes sums[kStreams] = {};
    for (size_t at = 0; at < part; at += 256)
        for (size_t stream = 0; stream < kStreams; ++stream) {
            const auto* line = reinterpret_cast<const Lanes*>(data + stream * part + at);
            for (size_t i = 0; i < 4; ++i) {
                __builtin_prefetch(reinterpret_cast<const std::byte*>(line + i) + 2048, 0, 0);
                sums[stream] ^= line[i];
            }
        }
    const Lanes sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
    uint64_t folded = 0;
    for (size_t i = 0; i < 8; ++i) folded ^= sum[i];
    return folded;
}

double best_rate(int threads, size_t bytes, double seconds, int advice) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 0;
    madvise(memory, bytes, advice);
    auto* data = static_cast<std::byte*>(memory);
    const size_t share = bytes / size_t(threads);
    std::barrier meet(threads);
    std::vector<double> rates;
    bool done = false;
    volatile uint64_t sink = 0;
    auto work = [&](int thread) {
        std::memset(data + size_t(thread) * share, thread + 1, share);  // its own half, so that it lies near
        const auto until = Clock::now() + std::chrono::duration<double>(seconds);
        while (!done) {
            meet.arrive_and_wait();
            const auto began = Clock::now();
            sink = sink ^ read_all(data + size_t(thread) * share, share);
            meet.arrive_and_wait();
            if (thread == 0) {
                const auto now = Clock::now();
                rates.push_back(double(share) * threads / std::chrono::duration<double>(now - began).count());
                done = now >= until;
            }
            meet.arrive_and_wait();
        }
    };
    std::vector<std::thread> team;
    for (int thread = 1; thread < threads; ++thread) team.emplace_back(work, thread);
    work(0);
    for (auto& thread : team) thread.join();
    munmap(memory, bytes);
    return *std::max_element(rates.begin(), rates.end());
}

}  // namespace

// Bytes per second of reads by so many threads, in pages of 4 KiB or, where the system grants them, in huge ones.
extern "C" [[gnu::visibility("default")]] double bandwidth(int threads, int mebibytes, double seconds, int huge) {
    return best_rate(threads, size_t(mebibytes) << 20, seconds, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}
