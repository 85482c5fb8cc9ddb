// Times linear layers, and what bounds them: reading memory and the multiply instructions. FORMAT is the format's type.
#include <chrono>
#include <vector>

#include "llmc/linear.h"

using namespace llmc;

constexpr int kRepeats = 40;

/// Seconds of the quickest of some rounds of work(team), which all threads begin together.
template <class Work>
double quickest(int threads, size_t scratch, Work work) {
  struct Shared {
    Work& work;
    double best;
  } shared{work, 1e9};
  Pool pool(threads, nullptr, scratch);
  const auto run = [](Team& team, void* argument) {
    auto& all = *static_cast<Shared*>(argument);
    for (int round = 0; round < kRepeats; ++round) {
      team.barrier();
      const auto start = std::chrono::steady_clock::now();
      all.work(team, round);
      team.barrier();
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      if (team.tid == 0) all.best = std::min(all.best, taken.count());
    }
  };
  if (pool.ok()) pool.run(run, &shared);
  return shared.best;
}

/// Bytes a second of reading `bytes` in another place each time.
EXPORT double read_speed(int threads, const char* data, int64_t size, int64_t bytes) {
  const auto read = [&](Team& team, int round) {
    const int64_t part = bytes / threads / 256 * 256;
    const char* from = data + round * bytes % (size - bytes) / 64 * 64 + team.tid * part;
    F32x16 sums[4] = {F32x16::zero(), F32x16::zero(), F32x16::zero(), F32x16::zero()};
    for (int64_t i = 0; i < part; i += 256)
      for (int j = 0; j < 4; ++j) sums[j] = max(sums[j], F32x16::loadu(reinterpret_cast<const float*>(from + i) + 16 * j));
    volatile float keep = reduce_max(max(max(sums[0], sums[1]), max(sums[2], sums[3])));
    (void)keep;
  };
  return double(bytes) / quickest(threads, 64, read);
}

/// Operations a second of FORMAT's multiply instruction on registers.
EXPORT double peak(int threads) {
  constexpr int kSteps = 100000, kChains = 12;
  constexpr bool kPairs = sizeof(Group<FORMAT>) == sizeof(Bfloat16Group);
  const auto burn = [](Team&, int) {
    __m512i sums[kChains] = {};
    const __m512i a = _mm512_set1_epi32(1), b = _mm512_set1_epi32(2);
    for (int i = 0; i < kSteps; ++i) {
      LLMC_UNROLL for (int j = 0; j < kChains; ++j) {
        if constexpr (FORMAT::quantized) asm volatile("vpdpbusd %1, %2, %0" : "+v"(sums[j]) : "v"(a), "v"(b));
        else if constexpr (kPairs) asm volatile("vdpbf16ps %1, %2, %0" : "+v"(sums[j]) : "v"(a), "v"(b));
        else asm volatile("vfmadd231ps %1, %2, %0" : "+v"(sums[j]) : "v"(a), "v"(b));
      }
    }
    volatile int keep = _mm512_reduce_add_epi32(sums[0]);
    (void)keep;
  };
  const double operations = FORMAT::quantized ? 128 : kPairs ? 64 : 32;
  return threads * operations * kSteps * kChains / quickest(threads, 64, burn);
}

struct Work {
  int64_t rows;
  int n;
  const Weights* weights;  // [copies]: another one each time, so that they come from memory
  const float* x;
  float* y;
  std::byte* shared;
};

constexpr int kTiles = 4;

template <int K>
double time_linear(int threads, int copies, const Work& work) {
  const auto once = [&](Team& team, int round) {
    linear<FORMAT, K, kTiles>(
        team, work.rows, work.n / kTiles / kTileRows, work.weights[round % copies], Crossover{}, work.shared,
        [&](int64_t t, float* x) { std::memcpy(x, work.x + t * K, K * sizeof(float)); },
        [](int unit, int j) { return unit * kTiles + j; },
        [&](int64_t t, int unit, const float* y) {
          std::memcpy(work.y + t * work.n + unit * kTiles * kTileRows, y, kTiles * kTileRows * sizeof(float));
        });
  };
  return quickest(threads, scratch_bytes<FORMAT, K, kTiles>(), once);
}

/// Seconds of one linear layer with n outputs of k inputs; negative where k is none of those that are compiled.
EXPORT double linear_time(int threads, int64_t rows, int n, int k, int copies, const Weights* weights, const float* x, float* y) {
  std::vector<std::byte> shared(size_t(rows) * size_t(group_count(k)) * sizeof(Group<FORMAT>));
  const Work work{rows, n, weights, x, y, shared.data()};
  if (k == 576) return time_linear<576>(threads, copies, work);
  if (k == 1536) return time_linear<1536>(threads, copies, work);
  if (k == 2048) return time_linear<2048>(threads, copies, work);
  if (k == 8192) return time_linear<8192>(threads, copies, work);
  return -1;
}
