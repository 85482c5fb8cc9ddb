// Integer products of attention, for keys and values in int8: queries and weights are rounded to 16 bits, two products
// at a time are summed in 32, exactly. So a sum is the same on every target, and in any order.
#pragma once

#include <algorithm>

#include "llmc/cache.h"
#include "llmc/simd.h"

namespace llmc {

/// What 16-bit queries and weights reach. A dot product of up to 1,032 elements of a query, or of 64 weights, with
/// integers up to 127 fits into 32 bits.
inline constexpr float kQueryLevels = 16383, kWeightLevels = 32767;

/// Sums of 16 lanes.
struct PairSums {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  __v16si v;  // as __m512i gcc 12 would copy it around every instruction

  static PairSums zero() { return {__v16si{}}; }
#elif defined(__AVX2__)
  __m256i low, high;

  static PairSums zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
#else
  int32_t v[16];

  static PairSums zero() { return {}; }
#endif
};

inline F32x16 to_floats(F32x16 sums) { return sums; }
inline F32x16 to_floats(const PairSums& sums) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  return {_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(sums.v))};
#elif defined(__AVX2__)
  return {_mm256_cvtepi32_ps(sums.low), _mm256_cvtepi32_ps(sums.high)};
#else
  alignas(64) float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = static_cast<float>(sums.v[i]);
  return F32x16::load(lanes);
#endif
}

/// Pairs of int8 of 16 lanes.
struct Pairs {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  __m512i v;

  explicit Pairs(const int8_t* p) : v(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))) {}
#elif defined(__AVX2__)
  __m256i low, high;

  explicit Pairs(const int8_t* p)
      : low(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))),
        high(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))) {}
#else
  int8_t v[32];

  explicit Pairs(const int8_t* p) { std::memcpy(v, p, sizeof v); }
#endif

  /// sum + a[0] * the first of each pair + a[1] * the second.
  PairSums multiply_add(const int16_t* a, PairSums sum) const {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    const __m512i wide = _mm512_set1_epi32(pair);
    return {reinterpret_cast<__v16si>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sum.v), v, wide))};
#elif defined(__AVX2__)
    const __m256i wide = _mm256_set1_epi32(pair);
    return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(low, wide)),
            _mm256_add_epi32(sum.high, _mm256_madd_epi16(high, wide))};
#else
    for (int i = 0; i < 16; ++i) sum.v[i] += a[0] * v[2 * i] + a[1] * v[2 * i + 1];
    return sum;
#endif
  }
};

/// 16 numbers rounded to integers of at most 16 bits; what is no number becomes any integer.
inline void store_integers(F32x16 x, int16_t* out) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x.v)));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute4x64_epi64(packed, 0xd8));
#else
  alignas(64) float lanes[16];
  min(max(round(x), F32x16::broadcast(-32768)), F32x16::broadcast(32767)).store(lanes);
  for (int i = 0; i < 16; ++i) out[i] = static_cast<int16_t>(lanes[i]);
#endif
}

/// Rounds a query of N elements to integers; the rest of `levels`, a multiple of 16, becomes 0. Returns their scale.
template <int N>
inline float to_query_levels(const float* q, int16_t* levels) {
  F32x16 most = F32x16::zero();
  for (int i = 0; i < N; i += 16) most = max(abs(load_16(q + i, N - i)), most);
  const float scale = reduce_max(most) / kQueryLevels;
  const F32x16 inverse = F32x16::broadcast(scale < FLT_MIN ? 0 : 1 / scale);
  for (int i = 0; i < N; i += 16) store_integers(load_16(q + i, N - i) * inverse, levels + i);
  return scale < FLT_MIN ? 0 : scale;
}

}  // namespace llmc
