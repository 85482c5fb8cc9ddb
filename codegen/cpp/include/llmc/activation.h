// Activation functions on sixteen floats. Each is within a few ulp of its value, or within 1e-7 where that is near 0
// for a large argument.
#pragma once

#include "llmc/simd.h"

namespace llmc {

inline F32x16 sigmoid(F32x16 x) {
  const F32x16 one = F32x16::broadcast(1);
  return one / (one + exp(-x));
}

inline F32x16 silu(F32x16 x) { return x / (F32x16::broadcast(1) + exp(-x)); }

inline F32x16 quick_gelu(F32x16 x) {
  return x / (F32x16::broadcast(1) + exp(x * F32x16::broadcast(-1.702f)));
}

/// The zero is the first operand so that a NaN stays one.
inline F32x16 relu(F32x16 x) { return max(F32x16::zero(), x); }

inline F32x16 square(F32x16 x) { return x * x; }
inline F32x16 relu2(F32x16 x) { return relu(x) * relu(x); }

/// x / 2 (1 + tanh u) is x / (1 + e^-2u), which loses nothing where tanh u is near -1.
inline F32x16 gelu_tanh(F32x16 x) {
  const F32x16 cubic = fma(x * x, F32x16::broadcast(0.044715f), F32x16::broadcast(1)) * x;
  return x / (F32x16::broadcast(1) + exp(cubic * F32x16::broadcast(-1.59576912160573071f)));
}

inline F32x16 tanh(F32x16 x) {
  const F32x16 size = abs(x), square = x * x, one = F32x16::broadcast(1);
  constexpr float kTerms[] = {-0.3333328f, 0.13331442f, -0.053739715f, 0.020639086f, -0.0057049864f};
  const F32x16 small = fma(polynomial(square, kTerms) * square, x, x);
  const F32x16 large = one - F32x16::broadcast(2) / (one + exp(size + size));
  return select(size < F32x16::broadcast(0.625f), small, copysign(large, x));
}

inline F32x16 erf(F32x16 x) {
  constexpr float kSmall[] = {0.12837917f,    -0.37612632f, 0.112836875f, -0.02685894f,
                              0.005199907f, -0.00081300124f, 8.316775e-05f};
  const F32x16 small = fma(polynomial(x * x, kSmall), x, x);
  // Further out 1 - erf is e to a polynomial; from 4 on erf rounds to 1. The limit gives way to a NaN.
  constexpr float kTail[] = {-0.0001774955f, -1.1277496f,   -0.63705975f,  -0.10403735f,
                             0.022277085f,   -0.0030556067f, 0.00019718165f};
  const F32x16 size = min(F32x16::broadcast(4), abs(x));
  const F32x16 large = F32x16::broadcast(1) - exp(polynomial(size, kTail));
  return select(size < F32x16::broadcast(0.92f), small, copysign(large, x));
}

inline F32x16 gelu_erf(F32x16 x) {
  const F32x16 half = x * F32x16::broadcast(0.5f);
  return fma(half, erf(x * F32x16::broadcast(0.70710678118654752f)), half);
}

/// y[i] = act(x[i]) for n elements; y may be x.
template <class Act>
inline void activate_row(const float* x, int64_t n, Act act, float* y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) act(F32x16::loadu(x + i)).storeu(y + i);
  if (i < n) act(F32x16::load_n(x + i, int(n - i))).store_n(y + i, int(n - i));
}

/// y[i] = act(gate[i]) * up[i] for n elements; y may be gate or up.
template <class Act>
inline void gated_act_row(const float* gate, const float* up, int64_t n, Act act, float* y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) (act(F32x16::loadu(gate + i)) * F32x16::loadu(up + i)).storeu(y + i);
  const int left = int(n - i);
  if (left > 0) (act(F32x16::load_n(gate + i, left)) * F32x16::load_n(up + i, left)).store_n(y + i, left);
}

}  // namespace llmc
