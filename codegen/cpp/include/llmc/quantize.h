// Activations as the kernels of each weight format take them, in groups of 32 inputs.
//
// Beside integer weights they are 8-bit integers with one scale a group of a token: scale = absmax / 127 and x =
// round_to_even(input / scale). What the kernels need of a group beyond its integers is computed here, once a token.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "llmc/formats.h"
#include "llmc/tile.h"

namespace llmc {

struct QuantizedGroup {
  int8_t x[kGroupInputs];
  float scale;        // what a weight's scale is multiplied by
  int32_t offset;     // -bias * sum(x), which takes off what unsigned weights are above their values
  int32_t minus_sum;  // -sum(x)
  float scaled_sum;   // scale * sum(x)
};

/// For weights with a scale for each half of a group: `offset` is that of the first half.
struct HalvesGroup : QuantizedGroup {
  int32_t second_offset;
};

struct Bfloat16Group {
  uint16_t x[kGroupInputs];
};

struct FloatGroup {
  float x[kGroupInputs];
};

template <class Format>
struct Activation {
  using Group = QuantizedGroup;
};
template <>
struct Activation<Int6G16> {
  using Group = HalvesGroup;
};
template <>
struct Activation<BF16> {
  using Group = Bfloat16Group;
};
template <>
struct Activation<F16> {
  using Group = FloatGroup;
};
template <>
struct Activation<F32> {
  using Group = FloatGroup;
};
template <>
struct Activation<FP8> {
  using Group = FloatGroup;
};

/// A group of 32 inputs as `Format` multiplies them.
template <class Format>
using Group = typename Activation<Format>::Group;

/// Rounds 32 floats to 8 bits: writes them, and returns their sum. `scale` becomes absmax / 127, NaN where an input is.
/// A group whose scale would not be a normal number is 0.
inline int32_t quantize_group(const float* in, int8_t* x, float& scale) {
#if defined(__AVX512VNNI__)
  const __m512 low = _mm512_loadu_ps(in), high = _mm512_loadu_ps(in + 16);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);  // magnitudes order as integers, and NaN is the greatest
  const __m512i larger = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                                          _mm512_and_si512(_mm512_castps_si512(high), magnitude));
  const int32_t bits = _mm512_reduce_max_epi32(larger);
  float absmax;
  std::memcpy(&absmax, &bits, sizeof absmax);
  scale = absmax / 127.0f;
  if (scale < FLT_MIN) scale = 0;
  const __m512 inverse = _mm512_set1_ps(scale == 0 ? 0 : 1 / scale);
  const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
  const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm512_cvtsepi32_epi8(a));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x + 16), _mm512_cvtsepi32_epi8(b));
  return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
#else
  int32_t largest = 0;
  for (int i = 0; i < kGroupInputs; ++i) {
    int32_t bits;
    std::memcpy(&bits, in + i, sizeof bits);
    bits &= 0x7fffffff;  // magnitudes order as integers, and NaN is the greatest
    largest = largest < bits ? bits : largest;
  }
  float absmax;
  std::memcpy(&absmax, &largest, sizeof absmax);
  scale = absmax / 127.0f;
  if (scale < FLT_MIN) scale = 0;
  const float inverse = scale == 0 ? 0 : 1 / scale;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to an integer, to even
  int32_t sum = 0;
  for (int i = 0; i < kGroupInputs; ++i) {
    const float shifted = in[i] * inverse + kRounder;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const int32_t rounded = bits - 0x4b400000;
    x[i] = static_cast<int8_t>(rounded);
    sum += x[i];
  }
  return sum;
#endif
}

/// `in` rounded to the nearest bfloat16, to even.
inline uint16_t to_bfloat16(float in) {
  uint32_t bits;
  std::memcpy(&bits, &in, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);  // NaN stays NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/// Packs 32 inputs for weights of `Format`.
template <class Format>
inline void pack_group(const float* in, Group<Format>& out) {
  if constexpr (Format::quantized) {
    float scale;
    const int32_t sum = quantize_group(in, out.x, scale);
    out.scale = Format::step * scale;
    out.offset = -Format::bias * sum;
    if constexpr (Format::parts == 2) {
      int32_t second = 0;
      for (int i = 16; i < kGroupInputs; ++i) second += out.x[i];
      out.second_offset = -Format::bias * second;
      out.offset -= out.second_offset;
    }
    out.minus_sum = -sum;
    out.scaled_sum = scale * static_cast<float>(sum);
  } else {
    for (int i = 0; i < kGroupInputs; ++i) {
      if constexpr (sizeof out.x[0] == 2) out.x[i] = to_bfloat16(in[i]);
      else out.x[i] = in[i];
    }
  }
}

}  // namespace llmc
