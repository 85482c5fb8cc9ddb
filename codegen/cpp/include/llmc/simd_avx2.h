// F32x16 in two AVX2 registers. See simd.h.
#pragma once

#include <immintrin.h>

namespace llmc {

/// One truth value for each lane: all bits of it, or none.
struct Mask16 {
  __m256 low, high;
};

struct F32x16 {
  __m256 low, high;

  static F32x16 load(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
  static F32x16 loadu(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  /// The first n lanes from p, the others 0; reads no further than p[n].
  static F32x16 load_n(const float* p, int n) {
    const __m256 high = n > 8 ? _mm256_maskload_ps(p + 8, first_lanes(n - 8)) : _mm256_setzero_ps();
    return {_mm256_maskload_ps(p, first_lanes(n)), high};
  }
  static F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  void store(float* p) const { _mm256_store_ps(p, low), _mm256_store_ps(p + 8, high); }
  void storeu(float* p) const { _mm256_storeu_ps(p, low), _mm256_storeu_ps(p + 8, high); }
  void store_n(float* p, int n) const {
    _mm256_maskstore_ps(p, first_lanes(n), low);
    if (n > 8) _mm256_maskstore_ps(p + 8, first_lanes(n - 8), high);
  }

  static __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline F32x16 operator-(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(a.low, sign), _mm256_xor_ps(a.high, sign)};
}
/// a * b + c
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
/// Where a lane is NaN, minimum and maximum are the second operand's.
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline F32x16 abs(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline F32x16 sqrt(F32x16 a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }
/// The magnitude of a with the sign of b.
inline F32x16 copysign(F32x16 a, F32x16 b) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_andnot_ps(sign, a.low), _mm256_and_ps(sign, b.low)),
          _mm256_or_ps(_mm256_andnot_ps(sign, a.high), _mm256_and_ps(sign, b.high))};
}
/// To the nearest integer, ties to even.
inline F32x16 round(F32x16 a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, kMode), _mm256_round_ps(a.high, kMode)};
}
/// 2^n for integers n in [-126, 127].
inline __m256 power(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
/// a * 2^n in two steps, the first of which is exact for a in [1/2, 2].
inline __m256 scale_by_power(__m256 a, __m256 n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  return _mm256_mul_ps(_mm256_mul_ps(a, power(half)), power(_mm256_sub_epi32(whole, half)));
}
/// a * 2^n for integers n; overflows to infinity and rounds once where the result is subnormal.
inline F32x16 scale_by_power(F32x16 a, F32x16 n) {
  return {scale_by_power(a.low, n.low), scale_by_power(a.high, n.high)};
}

template <int KIND>
inline Mask16 compare(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.low, b.low, KIND), _mm256_cmp_ps(a.high, b.high, KIND)};
}
inline Mask16 operator<(F32x16 a, F32x16 b) { return compare<_CMP_LT_OQ>(a, b); }
inline Mask16 operator<=(F32x16 a, F32x16 b) { return compare<_CMP_LE_OQ>(a, b); }
inline Mask16 operator==(F32x16 a, F32x16 b) { return compare<_CMP_EQ_OQ>(a, b); }
/// Lane by lane, `a` where the mask is true, else `b`.
inline F32x16 select(Mask16 mask, F32x16 a, F32x16 b) {
  return {_mm256_blendv_ps(b.low, a.low, mask.low), _mm256_blendv_ps(b.high, a.high, mask.high)};
}
/// Bit i: lane i of the mask.
inline uint32_t to_bits(Mask16 mask) {
  return uint32_t(_mm256_movemask_ps(mask.low)) | uint32_t(_mm256_movemask_ps(mask.high)) << 8;
}

inline float reduce_add(F32x16 a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
template <class Better>
inline float reduce_by(__m256 eight, Better better) {
  const __m128 four = better(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = better(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(better(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(F32x16 a) {
  return reduce_by(_mm256_max_ps(a.low, a.high), [](__m128 x, __m128 y) { return _mm_max_ps(x, y); });
}
inline float reduce_min(F32x16 a) {
  return reduce_by(_mm256_min_ps(a.low, a.high), [](__m128 x, __m128 y) { return _mm_min_ps(x, y); });
}

inline F32x16 load_16(const float* p) { return F32x16::loadu(p); }
inline F32x16 load_16(const f16* p) {
  const auto* halves = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
inline __m256 from_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline F32x16 load_16(const bf16* p) {
  const auto* halves = reinterpret_cast<const __m128i*>(p);
  return {from_bf16(_mm_loadu_si128(halves)), from_bf16(_mm_loadu_si128(halves + 1))};
}

inline __m128i to_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i top = _mm256_srli_epi32(bits, 16), odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));  // just below it where the last bit kept is 0
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i chosen = _mm256_blendv_epi8(rounded, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256(chosen, 1));
}
inline void store_16(float* p, F32x16 a) { a.storeu(p); }
inline void store_16(f16* p, F32x16 a) {
  auto* halves = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(halves, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_16(bf16* p, F32x16 a) {
  auto* halves = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(halves, to_bf16(a.low));
  _mm_storeu_si128(halves + 1, to_bf16(a.high));
}

}  // namespace llmc

#include "llmc/simd_tails.h"
