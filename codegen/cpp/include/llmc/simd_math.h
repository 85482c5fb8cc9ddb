// Functions of sixteen floats that are polynomials. See simd.h.
#pragma once

namespace llmc {

/// c[0] + c[1] x + c[2] x^2 + ...
template <int N>
inline F32x16 polynomial(F32x16 x, const float (&c)[N]) {
  F32x16 y = F32x16::broadcast(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, F32x16::broadcast(c[i]));
  return y;
}

/// e^x: 0 at minus infinity and infinity above 88.73; NaN stays NaN.
inline F32x16 exp(F32x16 x) {
  // x = n ln 2 + r with |r| <= ln 2 / 2. The limits lie where the result is surely 0 or infinite; as first operands
  // they give way to a NaN.
  x = min(F32x16::broadcast(89.0f), max(F32x16::broadcast(-104.0f), x));
  const F32x16 n = round(x * F32x16::broadcast(1.44269504088896341f));
  F32x16 r = fma(n, F32x16::broadcast(-0.693359375f), x);  // ln 2 in two parts: n times the first one is exact
  r = fma(n, F32x16::broadcast(2.12194440e-4f), r);
  constexpr float kTerms[] = {1.0f, 1.0f, 0.5f, 0.16666533f, 0.04166724f, 0.008367609f, 0.0013863668f};
  return scale_by_power(polynomial(r, kTerms), n);
}

}  // namespace llmc
