// What generated loops call on single elements and short rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "llmc/simd.h"

namespace llmc {

inline float to_float(float x) { return x; }

namespace scalar {

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
inline float silu(float x) { return x / (1.0f + std::exp(-x)); }
inline float gelu(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f)); }
inline float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}
inline float quick_gelu(float x) { return x * sigmoid(1.702f * x); }
inline float relu2(float x) { return x > 0 ? x * x : 0.0f; }
inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }
/// An index that counts from the end when it is negative. What is out of range reads an end of the table, never beyond.
inline int64_t wrapped(int64_t index, int64_t size) {
  return std::clamp<int64_t>(index < 0 ? index + size : index, 0, size - 1);
}
/// The remainder with the sign of the divisor, as torch has it.
template <class Type>
inline Type remainder(Type x, Type y) {
  return x - y * Type(std::floor(double(x) / double(y)));
}

}  // namespace scalar

namespace mask {

template <class A, class B>
inline auto where(bool condition, A a, B b) {
  return condition ? decltype(a + b)(a) : decltype(a + b)(b);
}
template <class A, class B>
inline auto minimum(A a, B b) {
  return a < b ? decltype(a + b)(a) : decltype(a + b)(b);
}
template <class A, class B>
inline auto maximum(A a, B b) {
  return a > b ? decltype(a + b)(a) : decltype(a + b)(b);
}
template <class A>
inline A absolute(A a) {
  return a < 0 ? -a : a;
}
/// Integer division and remainder that round down, as the formulas mean them.
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
inline int64_t modulo(int64_t a, int64_t b) { return a - b * floor_div(a, b); }

}  // namespace mask

}  // namespace llmc
