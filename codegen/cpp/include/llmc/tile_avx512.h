// Lanes for a tile's 16 rows: AVX-512 with VNNI and BF16. See tile.h.
#pragma once

#include <immintrin.h>

namespace llmc::tile {

using Ints = __m512i;
using Bytes = __m512i;

/// Rows, and tiles by rows, whose accumulators stay in the 32 registers.
struct Registers {
  static constexpr int int_rows = 8, float_rows = 8;
  static constexpr int panel_tiles = 4, panel_rows = 3;
};

inline Ints broadcast_int(int32_t x) { return _mm512_set1_epi32(x); }
inline Floats to_floats(Ints v) { return {_mm512_cvtepi32_ps(v)}; }

inline Bytes no_bytes() { return _mm512_setzero_si512(); }
inline Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline void store_bytes(void* p, Bytes v) { _mm512_storeu_si512(p, v); }
inline Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(0x0f)); }
inline Bytes high_nibbles(Bytes v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(0x0f)); }
inline Bytes low_nibbles_times_8(Bytes v) { return _mm512_and_si512(_mm512_slli_epi16(v, 3), _mm512_set1_epi8(0x78)); }
inline Bytes high_nibbles_times_8(Bytes v) { return _mm512_and_si512(_mm512_srli_epi16(v, 1), _mm512_set1_epi8(0x78)); }
/// The two bits J of each byte, four bits higher.
template <int J>
inline Bytes pairs_times_16(Bytes v) {
  const Bytes moved = J < 2 ? _mm512_slli_epi16(v, 4 - 2 * (J % 2)) : _mm512_srli_epi16(v, 2 * (J % 2));
  return _mm512_and_si512(moved, _mm512_set1_epi8(0x30));
}
inline Bytes add_bytes(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }

/// 128 - zero of each row, for each of its four inputs.
inline Bytes above_zeros(const uint8_t* zeros) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
  const __m512i spread = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  return _mm512_sub_epi8(_mm512_set1_epi8(static_cast<char>(128)), _mm512_shuffle_epi8(wide, spread));
}

/// sum + the products of four unsigned weights a row with the four signed inputs at `x`.
inline Ints dot(Ints sum, Bytes weights, const int8_t* x) {
  return _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(word(x)));
}
/// The same for weights below 128.
inline Ints dot_small(Ints sum, Bytes weights, const int8_t* x) { return dot(sum, weights, x); }

/// 8 * sum + zero * `minus_sum` (an int16) for the zeros of 16 rows.
inline Ints eighths(Ints sum, const uint8_t* zeros, int32_t minus_sum) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
  return _mm512_dpwssd_epi32(_mm512_slli_epi32(sum, 3), wide, _mm512_set1_epi32(minus_sum));
}

/// Byte I of each row as e4m3: the number in units of kE4m3Unit.
template <int I>
inline Floats e4m3(Bytes v) {
  const __m512i placed = _mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * I), 4);
  return {_mm512_castsi512_ps(_mm512_and_si512(placed, _mm512_set1_epi32(int(kE4m3Bits))))};
}

/// acc + the products of two bfloat16 weights a row with the two bfloat16 inputs at `x`.
inline Floats dot_bf16(Floats acc, const void* weights, const uint16_t* x) {
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(_mm512_loadu_si512(weights)),
                           reinterpret_cast<__m512bh>(_mm512_set1_epi32(word(x))))};
}

}  // namespace llmc::tile
