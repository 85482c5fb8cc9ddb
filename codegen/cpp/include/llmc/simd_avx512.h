// F32x16 in one AVX-512 register. See simd.h.
#pragma once

#include <immintrin.h>

namespace llmc {

/// One truth value for each lane.
struct Mask16 {
  __mmask16 bits;
};

inline __mmask16 first_lanes(int n) { return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }

struct F32x16 {
  __m512 v;

  static F32x16 load(const float* p) { return {_mm512_load_ps(p)}; }
  static F32x16 loadu(const float* p) { return {_mm512_loadu_ps(p)}; }
  /// The first n lanes from p, the others 0; reads no further than p[n].
  static F32x16 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
  static F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static F32x16 zero() { return {_mm512_setzero_ps()}; }
  void store(float* p) const { _mm512_store_ps(p, v); }
  void storeu(float* p) const { _mm512_storeu_ps(p, v); }
  void store_n(float* p, int n) const { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
};

inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
/// a * b + c
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
/// Where a lane is NaN, minimum and maximum are the second operand's.
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 abs(F32x16 a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
inline F32x16 sqrt(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
/// The magnitude of a with the sign of b.
inline F32x16 copysign(F32x16 a, F32x16 b) {
  const __m512 sign = _mm512_set1_ps(-0.0f);
  return {_mm512_or_ps(_mm512_andnot_ps(sign, a.v), _mm512_and_ps(sign, b.v))};
}
/// To the nearest integer, ties to even.
inline F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/// a * 2^n for integers n; overflows to infinity and rounds once where the result is subnormal.
inline F32x16 scale_by_power(F32x16 a, F32x16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }

inline Mask16 operator<(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask16 operator<=(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask16 operator==(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
/// Lane by lane, `a` where the mask is true, else `b`.
inline F32x16 select(Mask16 mask, F32x16 a, F32x16 b) { return {_mm512_mask_blend_ps(mask.bits, b.v, a.v)}; }
/// Bit i: lane i of the mask.
inline uint32_t to_bits(Mask16 mask) { return mask.bits; }

inline float reduce_add(F32x16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }
inline float reduce_min(F32x16 a) { return _mm512_reduce_min_ps(a.v); }

inline F32x16 load_16(const float* p) { return F32x16::loadu(p); }
inline F32x16 load_16(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F32x16 load_16(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline F32x16 load_16(const float* p, int n) { return F32x16::load_n(p, n); }
inline F32x16 load_16(const f16* p, int n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p))}; }
inline F32x16 load_16(const bf16* p, int n) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

inline __m256i to_f16(F32x16 a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/// In integers, not by VCVTNEPS2BF16: that one takes subnormal numbers for 0.
inline __m256i to_bf16(F32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));  // just below it where the last bit kept is 0
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), rounded, quiet));
}
inline void store_16(float* p, F32x16 a) { a.storeu(p); }
inline void store_16(f16* p, F32x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(a)); }
inline void store_16(bf16* p, F32x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(a)); }
inline void store_16(float* p, F32x16 a, int n) { a.store_n(p, n); }
inline void store_16(f16* p, F32x16 a, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), to_f16(a)); }
inline void store_16(bf16* p, F32x16 a, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), to_bf16(a)); }

}  // namespace llmc
