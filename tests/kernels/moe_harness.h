// Mixtures of experts in a few shapes, for the tests and for the sanitizers.
#pragma once

#include <cstdio>
#include <vector>

#include "llmc/activation.h"
#include "llmc/moe.h"

using namespace llmc;

struct Call {
  int64_t rows;
  const void *up[3], *down[3];
  const float *up_bias, *down_bias, *x;
  const int64_t* ids;
  const float* gates;
  float* y;
  std::byte* shared;
  Limits limits;
  Crossover crossover;
};

template <class Shape>
int run(const Call& call, int threads) {
  Pool pool(threads, nullptr, moe_scratch_bytes<Shape>());
  if (!pool.ok()) return 1;
  pool.run(
      [](Team& team, void* argument) {
        const Call& c = *static_cast<const Call*>(argument);
        const auto of = [](const void* const* parts) { return Weights{parts[0], parts[1], parts[2]}; };
        const ExpertWeights<float, float> weights{of(c.up), of(c.down), c.up_bias, c.down_bias};
        moe<Shape>(team, c.rows, weights, c.crossover, c.crossover, c.shared, c.x, c.ids, c.gates, c.limits,
                   [](F32x16 v) { return silu(v); }, c.y);
      },
      const_cast<Call*>(&call));
  return 0;
}

using Even = Mixture<F32, F32, 8, 2, 48, 32, true>;
using Odd = Mixture<Int4, Int8, 5, 3, 37, 83, true>;  // gate and up part meet within a tile
using Plain = Mixture<BF16, F16, 4, 1, 64, 48, false>;
using Narrow = Mixture<Int8, Int4M, 3, 2, 96, 16, true>;
