// Norms of one row. A row's sums have one order: 16 lanes in each of four accumulators, whatever the instructions.
#pragma once

#include <cmath>

#include "llmc/simd.h"

namespace llmc {

/// The sum of f(16 elements) over a row of n elements, `step` apart. `f` must give 0 in the lanes of no element, whose
/// number is its second argument.
template <class F>
inline float sum_of(const float* x, int64_t step, int64_t n, F f) {
  F32x16 sums[4] = {F32x16::zero(), F32x16::zero(), F32x16::zero(), F32x16::zero()};
  int64_t i = 0;
  if (step == 1) {
    for (; i + 64 <= n; i += 64)
      for (int j = 0; j < 4; ++j) sums[j] = sums[j] + f(F32x16::loadu(x + i + 16 * j), 16);
  }
  for (; i < n; i += 16) {
    const int count = int(n - i < 16 ? n - i : 16);
    sums[i / 16 % 4] = sums[i / 16 % 4] + f(load_strided(x + i * step, step, count), count);
  }
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/// y = (x - mean) * factor * (offset + weight) + bias, 16 elements at a time; null weight and bias leave their part
/// out.
template <class W, class B>
inline void scale_row(const float* x, int64_t step, int64_t n, float mean, float factor, const W* weight, float offset,
                      const B* bias, float* y) {
  const F32x16 shift = F32x16::broadcast(mean), scale = F32x16::broadcast(factor), add = F32x16::broadcast(offset);
  for (int64_t i = 0; i < n; i += 16) {
    const int count = int(n - i < 16 ? n - i : 16);
    F32x16 v = (load_strided(x + i * step, step, count) - shift) * scale;
    if (weight != nullptr) v = v * (add + load_strided(weight + i, 1, count));
    if (bias != nullptr) v = v + load_strided(bias + i, 1, count);
    store_strided(y + i, 1, count, v);
  }
}

/// y[i] = x[i * step] / sqrt(mean(x^2) + eps) * (offset + weight[i]) for n elements; y is contiguous and may be x when
/// step is 1. weight: float, f16 or bf16; null for no scale at all.
template <class W>
inline void rms_norm_row(const float* x, int64_t step, int64_t n, const W* weight, float eps, float offset, float* y) {
  const float squares = sum_of(x, step, n, [](F32x16 v, int) { return v * v; });
  scale_row(x, step, n, 0.0f, 1.0f / std::sqrt(squares / float(n) + eps), weight, offset, (const float*)nullptr, y);
}

/// y[i] = (x[i * step] - mean) / sqrt(variance + eps) * weight[i] + bias[i]; otherwise as `rms_norm_row`.
template <class W, class B>
inline void layer_norm_row(const float* x, int64_t step, int64_t n, const W* weight, const B* bias, float eps,
                           float* y) {
  const float mean = sum_of(x, step, n, [](F32x16 v, int) { return v; }) / float(n);
  const F32x16 shift = F32x16::broadcast(mean);
  const float squares = sum_of(x, step, n, [shift](F32x16 v, int count) {
    const F32x16 centred = v - shift;
    if (count == 16) return centred * centred;
    alignas(64) float lanes[16] = {};
    centred.store_n(lanes, count);  // lanes of no element are 0, not -mean
    return F32x16::load(lanes) * F32x16::load(lanes);
  });
  scale_row(x, step, n, mean, 1.0f / std::sqrt(squares / float(n) + eps), weight, 0.0f, bias, y);
}

}  // namespace llmc
