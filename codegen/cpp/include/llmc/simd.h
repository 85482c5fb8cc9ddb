// Sixteen floats as one value, in the widest vectors that the target has.
//
// F32x16 is the type of all kernels that are not matrix products. A sum over lanes has one order on every target: lane
// i with lane i + 8, then + 4, + 2, + 1. `fma` rounds once where the target can (AVX2 and up), else twice.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace llmc {

/// A half-precision number, as stored.
struct f16 {
  uint16_t bits;
};

/// A bfloat16 number, as stored.
struct bf16 {
  uint16_t bits;
};

}  // namespace llmc

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "llmc/simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "llmc/simd_avx2.h"
#else
#include "llmc/simd_portable.h"
#endif

#include "llmc/simd_convert.h"
#include "llmc/simd_math.h"
