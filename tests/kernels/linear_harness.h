// Linear layers of one weight format, as a C function for the tests and for the program that sanitizers watch.
// FORMAT is the format's type.
#pragma once

#include "llmc/linear.h"

using namespace llmc;

/// What one call needs. Arrays end where the data do: x [rows, K], y [rows, n].
struct Call {
  int64_t rows;
  int n;
  Weights weights;
  const float* x;
  float* y;
  Crossover crossover;
  std::byte* shared;
};

/// One thread's part. Units that reach past the last tile repeat it.
template <class Format, int K, int TILES>
void run_linear(Team& team, void* argument) {
  const Call& call = *static_cast<const Call*>(argument);
  const int tiles = (call.n + kTileRows - 1) / kTileRows;
  linear<Format, K, TILES>(
      team, call.rows, (tiles + TILES - 1) / TILES, call.weights, call.crossover, call.shared,
      [&](int64_t t, float* x) { std::memcpy(x, call.x + t * K, K * sizeof(float)); },
      [&](int unit, int j) { return std::min(unit * TILES + j, tiles - 1); },
      [&](int64_t t, int unit, const float* y) {
        const int first = unit * TILES * kTileRows, count = std::min(TILES * kTileRows, call.n - first);
        std::memcpy(call.y + t * call.n + first, y, size_t(count) * sizeof(float));
      });
}

/// A number of inputs and of tiles in a unit, and what goes with it.
struct Case {
  int k;
  void (*run)(Team&, void*);
  size_t scratch, shared;
};

template <class Format, int K, int TILES>
constexpr Case kCase = {K, run_linear<Format, K, TILES>, scratch_bytes<Format, K, TILES>(), shared_bytes<Format, K>()};

template <class Format>
constexpr Case kCases[] = {kCase<Format, 1, 1>, kCase<Format, 31, 2>, kCase<Format, 32, 8>, kCase<Format, 33, 5>,
                           kCase<Format, 577, 4>, kCase<Format, 1031, 3>};

EXPORT int multiply_all(int which, int threads, int64_t rows, int n, const void* data, const void* scales, const void* extra,
                        const float* x, float* y, int flat, int gemm) {
  const Case& chosen = kCases<FORMAT>[which];
  Pool pool(threads, nullptr, chosen.scratch);
  auto* shared = static_cast<std::byte*>(std::aligned_alloc(64, (size_t(rows) * chosen.shared + 63) / 64 * 64));
  if (!pool.ok() || shared == nullptr) return 1;
  Call call{rows, n, {data, scales, extra}, x, y, {flat, gemm}, shared};
  pool.run(chosen.run, &call);
  std::free(shared);
  return 0;
}
