// The softmax of attention. Scores are kept in units of log 2, so that weights are powers of two.
#pragma once

#include <bit>
#include <cfloat>
#include <cstdint>
#include <limits>

#include "llmc/tile.h"

namespace llmc::softmax {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kHidden = -std::numeric_limits<float>::infinity();  // the score of a key that is not visible
inline constexpr float kLowest = -FLT_MAX;  // the greatest of no scores: finite, so that no difference is NaN

// 2^f for f in [0, 1): a minimax polynomial whose value at 0 is exactly 1; relative error 1.5e-7 in fp32.
inline constexpr float kPower[] = {1.0f,
                                   0.6931512951850891f,
                                   0.24016444385051727f,
                                   0.05579991266131401f,
                                   0.009017030708491802f,
                                   0.0018671300495043397f};

#if defined(__AVX512F__)

inline __m512 power_of_two(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x01);  // x - floor(x); 0 for infinities
  __m512 y = _mm512_set1_ps(kPower[5]);
  for (int i = 4; i >= 0; --i) y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(kPower[i]));
  return _mm512_scalef_ps(y, x);
}

/// x[i] = 2^(x[i] - shift[i]) for 16 numbers.
inline void power_of_two(float* x, const float* shift) {
  _mm512_storeu_ps(x, power_of_two(_mm512_sub_ps(_mm512_loadu_ps(x), _mm512_loadu_ps(shift))));
}

/// The greatest of 16 * n scores.
inline float greatest(const float* x, int n) {
  __m512 top = _mm512_loadu_ps(x);
  for (int j = 1; j < n; ++j) top = _mm512_max_ps(top, _mm512_loadu_ps(x + 16 * j));
  return _mm512_reduce_max_ps(top);
}

/// Turns 16 * n scores into weights 2^(x - top) and adds them to 16 sums.
inline void weigh(float* x, int n, float top, float* sums) {
  __m512 sum = _mm512_loadu_ps(sums);
  for (int j = 0; j < n; ++j) {
    const __m512 w = power_of_two(_mm512_sub_ps(_mm512_loadu_ps(x + 16 * j), _mm512_set1_ps(top)));
    _mm512_storeu_ps(x + 16 * j, w);
    sum = _mm512_add_ps(sum, w);
  }
  _mm512_storeu_ps(sums, sum);
}

#else

inline float power_of_two(float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to an integer
  x = x < -127.0f ? -127.0f : x;           // 2^-127 comes out as 0; NaN stays
  x = x > 127.0f ? 127.0f : x;
  const float rounded = x + kRounder;
  const float down = rounded - kRounder > x ? 1.0f : 0.0f;
  const float f = x - (rounded - kRounder - down);
  float y = kPower[5];
  for (int i = 4; i >= 0; --i) y = y * f + kPower[i];
  const int32_t whole = std::bit_cast<int32_t>(rounded - down) - 0x4b400000;
  return y * std::bit_cast<float>((whole + 127) << 23);
}

inline void power_of_two(float* x, const float* shift) {
  for (int i = 0; i < 16; ++i) x[i] = power_of_two(x[i] - shift[i]);
}

inline float greatest(const float* x, int n) {
  float top[16];
  for (int i = 0; i < 16; ++i) top[i] = x[i];
  for (int j = 1; j < n; ++j)
    for (int i = 0; i < 16; ++i) top[i] = x[16 * j + i] > top[i] ? x[16 * j + i] : top[i];
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) top[i] = top[i + half] > top[i] ? top[i + half] : top[i];
  return top[0];
}

inline void weigh(float* x, int n, float top, float* sums) {
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < 16; ++i) {
      const float w = power_of_two(x[16 * j + i] - top);
      x[16 * j + i] = w;
      sums[i] += w;
    }
}

#endif

/// 2^x.
inline float power(float x) {
  alignas(64) float lanes[16] = {x};
  alignas(64) const float shift[16] = {};
  power_of_two(lanes, shift);
  return lanes[0];
}

/// The sum of 16 numbers, in halves.
inline float total(const float* x) {
  float half[8];
  for (int i = 0; i < 8; ++i) half[i] = x[i] + x[i + 8];
  for (int n = 4; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) half[i] += half[i + n];
  return half[0];
}

/// Scores from dot products: n numbers times `scale`; with a cap, cap * tanh(scale * x / cap).
inline void scale_scores(float* x, int n, float scale, float softcap) {
  if (softcap <= 0) {
    scale *= kLog2E;
    for (int i = 0; i < n; ++i) x[i] *= scale;
    return;
  }
  alignas(64) const float shift[16] = {};
  scale *= 2 * kLog2E / softcap;
  for (int i = 0; i < n; i += 16) {
    for (int lane = 0; lane < 16; ++lane) x[i + lane] *= scale;
    power_of_two(x + i, shift);  // e^2y, and tanh(y) = 1 - 2 / (e^2y + 1)
    for (int lane = 0; lane < 16; ++lane) x[i + lane] = softcap * kLog2E * (1 - 2 / (x[i + lane] + 1));
  }
}

}  // namespace llmc::softmax
