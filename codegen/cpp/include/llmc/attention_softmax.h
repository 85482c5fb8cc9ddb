// The softmax of attention. Scores are kept in units of log 2, so that weights are powers of two.
#pragma once

#include <cfloat>
#include <limits>

#include "llmc/activation.h"
#include "llmc/simd.h"

namespace llmc::softmax {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kHidden = -std::numeric_limits<float>::infinity();  // the score of a key that is not visible
inline constexpr float kLowest = -FLT_MAX;  // the greatest of no scores: finite, so that no difference is NaN

/// 2^x for 16 numbers below 128: 0 at minus infinity, relative error about 1e-7; NaN stays NaN.
inline F32x16 power_of_two(F32x16 x) {
  // x = n + f with |f| <= 1/2. What is below the limit gives 0; as first operand the limit gives way to a NaN.
  x = max(F32x16::broadcast(-200.0f), x);
  const F32x16 n = round(x);
  constexpr float kTerms[] = {1.0f,          0.6931470036506653f,   0.24022242426872253f, 0.05550733581185341f,
                              0.009671512991189957f, 0.001326472731307149f};
  return scale_by_power(polynomial(x - n, kTerms), n);
}

/// 2^x.
inline float power_of_two(float x) {
  alignas(64) float lanes[16];
  power_of_two(F32x16::broadcast(x)).store(lanes);
  return lanes[0];
}

/// Scores from dot products, in units of log 2.
struct Scale {
  float factor, softcap;  // softcap 0: none

  Scale(float scale, float cap) : factor(cap > 0 ? scale / cap : scale * kLog2E), softcap(cap > 0 ? cap * kLog2E : 0) {}

  F32x16 operator()(F32x16 x) const {
    x = x * F32x16::broadcast(factor);
    return softcap == 0 ? x : F32x16::broadcast(softcap) * tanh(x);
  }
};

}  // namespace llmc::softmax
