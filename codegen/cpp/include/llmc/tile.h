// Integers with one lane for each of the 16 rows of a tile, beside the floats of simd.h.
//
// Ints: an int32 a row; Bytes: four neighbouring inputs a row, unsigned. Each target also says how many tiles and rows
// of activations its registers hold (Registers).
#pragma once

#include "llmc/simd.h"

/// Before a loop over registers: unrolls it, so that they are registers.
#define LLMC_UNROLL _Pragma("GCC unroll 16")

namespace llmc::tile {

using Floats = F32x16;

/// The four bytes at `p` as one number.
inline int32_t word(const void* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

/// An e4m3 byte of sign, 4 bits of exponent and 3 of mantissa, moved to where a float has these bits, is the number in
/// units of 2^120: the exponents' biases are 7 and 127. Subnormal numbers come out right as well.
inline constexpr uint32_t kE4m3Bits = 0x87f00000;
inline constexpr float kE4m3Unit = 0x1p120f;

inline Floats zero() { return F32x16::zero(); }
inline Floats load(const float* p) { return F32x16::loadu(p); }
inline void store(float* p, Floats v) { v.storeu(p); }
inline Floats load_half(const void* p) { return load_16(static_cast<const f16*>(p)); }
inline Floats broadcast(float x) { return F32x16::broadcast(x); }
inline Floats mul(Floats a, Floats b) { return a * b; }
inline Floats fma(Floats a, Floats b, Floats c) { return llmc::fma(a, b, c); }

}  // namespace llmc::tile

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#include "llmc/tile_avx512.h"
#elif defined(__AVX2__)
#include "llmc/tile_avx2.h"
#else
#include "llmc/tile_portable.h"
#endif
