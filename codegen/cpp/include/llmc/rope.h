// Rotary position embedding of one head: x * cos + rotate(x) * sin on the first R elements, the rest as it is.
//
// `rotate` maps the halves (a, b) of the R elements to (-b, a), or each neighbouring pair when interleaved.
#pragma once

#include <cstring>

#include "llmc/simd.h"

namespace llmc {

/// Rotates `rotated` (even) of n elements of x, `xs` apart, by cos and sin [rotated], `cs` and `ss` apart. y is
/// contiguous; it may be x when xs is 1.
template <bool interleaved>
inline void rope_row(const float* x, const float* cos, const float* sin, int64_t xs, int64_t cs, int64_t ss, int n,
                     int rotated, float* y) {
  const int half = rotated / 2;
  if constexpr (interleaved) {
    for (int i = 0; i < rotated; i += 2) {
      const float a = x[i * xs], b = x[(i + 1) * xs];
      y[i] = a * cos[i * cs] - b * sin[i * ss];
      y[i + 1] = b * cos[(i + 1) * cs] + a * sin[(i + 1) * ss];
    }
  } else {
    for (int i = 0; i < half; i += 16) {
      const int count = half - i < 16 ? half - i : 16, j = i + half;
      const F32x16 a = load_strided(x + i * xs, xs, count), b = load_strided(x + j * xs, xs, count);
      const F32x16 first = a * load_strided(cos + i * cs, cs, count) - b * load_strided(sin + i * ss, ss, count);
      const F32x16 second = b * load_strided(cos + j * cs, cs, count) + a * load_strided(sin + j * ss, ss, count);
      store_strided(y + i, 1, count, first);
      store_strided(y + j, 1, count, second);
    }
  }
  if (y == x) return;
  for (int i = rotated; i < n; ++i) y[i] = x[i * xs];
}

/// Rotates a head [N] in place by cos and sin [R].
template <bool interleaved, int N, int R>
inline void rope_head(float* head, const float* cos, const float* sin) {
  static_assert(R <= N && R % 2 == 0);
  rope_row<interleaved>(head, cos, sin, 1, 1, 1, N, R, head);
}

}  // namespace llmc
