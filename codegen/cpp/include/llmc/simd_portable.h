// F32x16 as four vectors of four floats, in the vector extensions of GCC and Clang: any target. See simd.h.
#pragma once

#include <cmath>

namespace llmc {

using Float4 = float __attribute__((vector_size(16)));
using Int4x = int32_t __attribute__((vector_size(16)));

/// One truth value for each lane: all bits of it, or none.
struct Mask16 {
  Int4x v[4];
};

struct F32x16 {
  Float4 v[4];

  static F32x16 load(const float* p) { return loadu(p); }
  static F32x16 loadu(const float* p) {
    F32x16 a;
    std::memcpy(a.v, p, sizeof a.v);
    return a;
  }
  /// The first n lanes from p, the others 0; reads no further than p[n].
  static F32x16 load_n(const float* p, int n) {
    F32x16 a = zero();
    std::memcpy(a.v, p, sizeof(float) * size_t(n < 16 ? n : 16));
    return a;
  }
  static F32x16 broadcast(float x) {
    const Float4 four = {x, x, x, x};
    return {{four, four, four, four}};
  }
  static F32x16 zero() { return broadcast(0); }
  void store(float* p) const { storeu(p); }
  void storeu(float* p) const { std::memcpy(p, v, sizeof v); }
  void store_n(float* p, int n) const { std::memcpy(p, v, sizeof(float) * size_t(n < 16 ? n : 16)); }
};

/// f(quarter of a, quarter of b) for all four quarters.
template <class Result = F32x16, class A, class B, class F>
inline Result by_quarters(const A& a, const B& b, F f) {
  return {{f(a.v[0], b.v[0]), f(a.v[1], b.v[1]), f(a.v[2], b.v[2]), f(a.v[3], b.v[3])}};
}
template <class Result = F32x16, class A, class F>
inline Result by_quarters(const A& a, F f) {
  return {{f(a.v[0]), f(a.v[1]), f(a.v[2]), f(a.v[3])}};
}

inline F32x16 operator+(F32x16 a, F32x16 b) { return by_quarters(a, b, [](Float4 x, Float4 y) { return x + y; }); }
inline F32x16 operator-(F32x16 a, F32x16 b) { return by_quarters(a, b, [](Float4 x, Float4 y) { return x - y; }); }
inline F32x16 operator*(F32x16 a, F32x16 b) { return by_quarters(a, b, [](Float4 x, Float4 y) { return x * y; }); }
inline F32x16 operator/(F32x16 a, F32x16 b) { return by_quarters(a, b, [](Float4 x, Float4 y) { return x / y; }); }
inline F32x16 operator-(F32x16 a) { return by_quarters(a, [](Float4 x) { return -x; }); }
/// a * b + c
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return a * b + c; }
/// Where a lane is NaN, minimum and maximum are the second operand's.
inline F32x16 min(F32x16 a, F32x16 b) { return by_quarters(a, b, [](Float4 x, Float4 y) { return x < y ? x : y; }); }
inline F32x16 max(F32x16 a, F32x16 b) { return by_quarters(a, b, [](Float4 x, Float4 y) { return x > y ? x : y; }); }
inline F32x16 abs(F32x16 a) {
  return by_quarters(a, [](Float4 x) { return std::bit_cast<Float4>(std::bit_cast<Int4x>(x) & 0x7fffffff); });
}
inline F32x16 sqrt(F32x16 a) {
  return by_quarters(a, [](Float4 x) {
    return Float4{std::sqrt(x[0]), std::sqrt(x[1]), std::sqrt(x[2]), std::sqrt(x[3])};
  });
}
/// The magnitude of a with the sign of b.
inline F32x16 copysign(F32x16 a, F32x16 b) {
  return by_quarters(a, b, [](Float4 x, Float4 y) {
    return std::bit_cast<Float4>((std::bit_cast<Int4x>(x) & 0x7fffffff) | (std::bit_cast<Int4x>(y) & INT32_MIN));
  });
}
/// To the nearest integer, ties to even. From 2^23 on all floats are integers.
inline F32x16 round(F32x16 a) {
  const F32x16 rounded = by_quarters(a, [](Float4 x) {
    const Float4 magnitude = std::bit_cast<Float4>(std::bit_cast<Int4x>(x) & 0x7fffffff);
    const Float4 whole = (magnitude + 8388608.0f) - 8388608.0f;
    return magnitude < 8388608.0f ? whole : magnitude;
  });
  return copysign(rounded, a);
}
/// a * 2^n for integers n; overflows to infinity and rounds once where the result is subnormal.
inline F32x16 scale_by_power(F32x16 a, F32x16 n) {
  return by_quarters(a, n, [](Float4 x, Float4 y) {
    const Int4x whole = __builtin_convertvector(y, Int4x), half = whole >> 1;
    return x * std::bit_cast<Float4>((half + 127) << 23) * std::bit_cast<Float4>((whole - half + 127) << 23);
  });
}

inline Mask16 operator<(F32x16 a, F32x16 b) {
  return by_quarters<Mask16>(a, b, [](Float4 x, Float4 y) { return Int4x(x < y); });
}
inline Mask16 operator<=(F32x16 a, F32x16 b) {
  return by_quarters<Mask16>(a, b, [](Float4 x, Float4 y) { return Int4x(x <= y); });
}
inline Mask16 operator==(F32x16 a, F32x16 b) {
  return by_quarters<Mask16>(a, b, [](Float4 x, Float4 y) { return Int4x(x == y); });
}
/// Lane by lane, `a` where the mask is true, else `b`.
inline F32x16 select(Mask16 mask, F32x16 a, F32x16 b) {
  F32x16 y;
  for (int i = 0; i < 4; ++i) y.v[i] = mask.v[i] ? a.v[i] : b.v[i];
  return y;
}
/// Bit i: lane i of the mask.
inline uint32_t to_bits(Mask16 mask) {
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= uint32_t(mask.v[i / 4][i % 4] & 1) << i;
  return bits;
}

inline float reduce_add(F32x16 a) {
  const Float4 four = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
template <class Better>
inline float reduce_by(F32x16 a, Better better) {
  float found = a.v[0][0];
  for (int i = 1; i < 16; ++i) found = better(found, a.v[i / 4][i % 4]);
  return found;
}
inline float reduce_max(F32x16 a) {
  return reduce_by(a, [](float x, float y) { return x > y ? x : y; });
}
inline float reduce_min(F32x16 a) {
  return reduce_by(a, [](float x, float y) { return x < y ? x : y; });
}

inline float from_f16(uint16_t half) {
  // The exponent is moved by a product, which also normalises subnormal numbers.
  const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
  uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  if (magnitude >= 0x7c00u << 13) bits |= 0x7f800000;
  return std::bit_cast<float>(bits | uint32_t(half & 0x8000) << 16);
}
inline uint16_t to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00 | (magnitude >> 13 & 0x3ff);
  } else if (magnitude >= 0x477ff000) {  // rounds to 2^16 or more
    half = 0x7c00;
  } else if (magnitude >= 0x38800000) {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  } else {  // a sum with 1/2 rounds to a multiple of 2^-24, the smallest half
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  }
  return uint16_t(half | (bits >> 16 & 0x8000));
}
inline uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline F32x16 load_16(const float* p) { return F32x16::loadu(p); }
inline F32x16 load_16(const f16* p) {
  F32x16 a;
  for (int i = 0; i < 16; ++i) a.v[i / 4][i % 4] = from_f16(p[i].bits);
  return a;
}
inline F32x16 load_16(const bf16* p) {
  F32x16 a;
  for (int i = 0; i < 16; ++i) a.v[i / 4][i % 4] = std::bit_cast<float>(uint32_t(p[i].bits) << 16);
  return a;
}
inline void store_16(float* p, F32x16 a) { a.storeu(p); }
inline void store_16(f16* p, F32x16 a) {
  for (int i = 0; i < 16; ++i) p[i].bits = to_f16(a.v[i / 4][i % 4]);
}
inline void store_16(bf16* p, F32x16 a) {
  for (int i = 0; i < 16; ++i) p[i].bits = to_bf16(a.v[i / 4][i % 4]);
}

}  // namespace llmc

#include "llmc/simd_tails.h"
