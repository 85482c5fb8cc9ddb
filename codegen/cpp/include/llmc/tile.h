// Vectors with one lane for each of the 16 rows of a tile, in the widest instructions that the target has.
//
// Floats: a float a row; Ints: an int32 a row; Bytes: four neighbouring inputs a row, unsigned.
#pragma once

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#include "llmc/tile_avx512.h"
#elif defined(__AVX2__)
#include "llmc/tile_avx2.h"
#else
#include "llmc/tile_portable.h"
#endif
