// Lanes for a tile's 16 rows: two AVX2 registers. See tile.h.
#pragma once

#include <immintrin.h>

namespace llmc::tile {

struct Ints {
  __m256i low, high;
};
using Bytes = Ints;

/// Rows, and tiles by rows, whose accumulators stay in the 16 registers.
struct Registers {
  static constexpr int int_rows = 3, float_rows = 6;
  static constexpr int panel_tiles = 1, panel_rows = 3;
};

/// f(half of a, half of b) for both halves.
template <class F>
inline Ints by_halves(Ints a, Ints b, F f) {
  return {f(a.low, b.low), f(a.high, b.high)};
}

inline Ints broadcast_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Floats to_floats(Ints v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }

inline Bytes no_bytes() { return broadcast_int(0); }
inline Bytes load_bytes(const void* p) {
  const auto* half = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(half), _mm256_loadu_si256(half + 1)};
}
inline void store_bytes(void* p, Bytes v) {
  auto* half = static_cast<__m256i*>(p);
  _mm256_storeu_si256(half, v.low), _mm256_storeu_si256(half + 1, v.high);
}
inline Bytes masked(Bytes v, int bits) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(bits));
  return {_mm256_and_si256(v.low, mask), _mm256_and_si256(v.high, mask)};
}
inline Bytes low_nibbles(Bytes v) { return masked(v, 0x0f); }
inline Bytes high_nibbles(Bytes v) { return masked({_mm256_srli_epi16(v.low, 4), _mm256_srli_epi16(v.high, 4)}, 0x0f); }
inline Bytes low_nibbles_times_8(Bytes v) {
  return masked({_mm256_slli_epi16(v.low, 3), _mm256_slli_epi16(v.high, 3)}, 0x78);
}
inline Bytes high_nibbles_times_8(Bytes v) {
  return masked({_mm256_srli_epi16(v.low, 1), _mm256_srli_epi16(v.high, 1)}, 0x78);
}
/// The two bits J of each byte, four bits higher.
template <int J>
inline Bytes pairs_times_16(Bytes v) {
  if constexpr (J < 2) return masked({_mm256_slli_epi16(v.low, 4 - 2 * J), _mm256_slli_epi16(v.high, 4 - 2 * J)}, 0x30);
  else return masked({_mm256_srli_epi16(v.low, 2 * J - 4), _mm256_srli_epi16(v.high, 2 * J - 4)}, 0x30);
}
inline Bytes add_bytes(Bytes a, Bytes b) {
  return by_halves(a, b, [](__m256i x, __m256i y) { return _mm256_add_epi8(x, y); });
}

/// The zeros of 16 rows as int32.
inline Ints wide_zeros(const uint8_t* zeros) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
  return {_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
}

/// 128 - zero of each row, for each of its four inputs.
inline Bytes above_zeros(const uint8_t* zeros) {
  const __m256i spread = _mm256_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0, 0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  const __m256i above = _mm256_set1_epi8(static_cast<char>(128));
  const Ints wide = wide_zeros(zeros);
  return {_mm256_sub_epi8(above, _mm256_shuffle_epi8(wide.low, spread)),
          _mm256_sub_epi8(above, _mm256_shuffle_epi8(wide.high, spread))};
}

/// sum + the products of four unsigned weights a row with the four signed inputs at `x`. In 16 bits, the even inputs
/// and the odd ones: products of whole unsigned bytes would saturate in VPMADDUBSW.
inline Ints dot(Ints sum, Bytes weights, const int8_t* x) {
  const __m256i inputs = _mm256_set1_epi32(word(x)), evens = _mm256_set1_epi16(0x00ff);
  const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(inputs, 8), 8), odd = _mm256_srai_epi16(inputs, 8);
  return by_halves(sum, weights, [&](__m256i total, __m256i w) {
    total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_and_si256(w, evens), even));
    return _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_srli_epi16(w, 8), odd));
  });
}
/// The same for weights below 128.
inline Ints dot_small(Ints sum, Bytes weights, const int8_t* x) {
  const __m256i inputs = _mm256_set1_epi32(word(x)), ones = _mm256_set1_epi16(1);
  return by_halves(sum, weights, [&](__m256i total, __m256i w) {
    return _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(w, inputs), ones));
  });
}

/// 8 * sum + zero * `minus_sum` (an int16) for the zeros of 16 rows.
inline Ints eighths(Ints sum, const uint8_t* zeros, int32_t minus_sum) {
  const __m256i factor = _mm256_set1_epi32(minus_sum);
  return by_halves(sum, wide_zeros(zeros), [&](__m256i total, __m256i zero) {
    return _mm256_add_epi32(_mm256_slli_epi32(total, 3), _mm256_madd_epi16(zero, factor));
  });
}

/// Byte I of each row as e4m3: the number in units of kE4m3Unit.
template <int I>
inline Floats e4m3(Bytes v) {
  const auto half = [](__m256i bytes) {
    const __m256i placed = _mm256_srai_epi32(_mm256_slli_epi32(bytes, 24 - 8 * I), 4);
    return _mm256_castsi256_ps(_mm256_and_si256(placed, _mm256_set1_epi32(int(kE4m3Bits))));
  };
  return {half(v.low), half(v.high)};
}

/// acc + the products of two bfloat16 weights a row with the two bfloat16 inputs at `x`.
inline Floats dot_bf16(Floats acc, const void* weights, const uint16_t* x) {
  const Bytes pairs = load_bytes(weights);
  const auto even = [](__m256i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); };
  const auto odd = [](__m256i v) { return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(-65536))); };
  const __m256i inputs = _mm256_set1_epi32(word(x));
  acc = llmc::fma({odd(pairs.low), odd(pairs.high)}, {odd(inputs), odd(inputs)}, acc);
  return llmc::fma({even(pairs.low), even(pairs.high)}, {even(inputs), even(inputs)}, acc);
}

}  // namespace llmc::tile
