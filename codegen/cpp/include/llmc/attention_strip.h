// The two products of attention for a strip of rows: queries with keys, and weights with values. One row's sum for one
// key, or for one element of the output, is a single chain in ascending order, so that it does not depend on the strip.
#pragma once

#include <algorithm>

#include "llmc/cache.h"
#include "llmc/simd.h"
#include "llmc/tile.h"

namespace llmc {

inline constexpr int kBlockKeys = 64;  // keys that a strip takes at a time
inline constexpr int kBlockGroups = kBlockKeys / kKeyGroup;
inline constexpr int kStripRows = 6;
#if defined(__AVX512F__)
inline constexpr int kStripVectors = 4;  // sums of 6 rows, a vector of each and a broadcast: 29 registers
#else
inline constexpr int kStripVectors = 1;
#endif

/// What queries and weights are rounded to before they meet keys and values of type E.
template <class E>
using Operand = std::conditional_t<std::is_same_v<E, BF16>, uint16_t, float>;

/// Rounds 16 numbers.
template <class E>
inline void to_operands(F32x16 x, Operand<E>* out) {
  if constexpr (std::is_same_v<E, BF16>) {
#if defined(__AVX512BF16__)
    const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), rounded);
#else
    store_16(reinterpret_cast<bf16*>(out), x);
#endif
  } else {
    x.storeu(out);
  }
}

/// acc + the operands of one step at `a` times the 16 lanes of a step at `b`.
template <class E>
inline tile::Floats multiply_add(tile::Floats acc, const typename Stored<E>::type* b, const Operand<E>* a) {
  if constexpr (std::is_same_v<E, BF16>) {
    return tile::dot_bf16(acc, b, a);
  } else if constexpr (std::is_same_v<E, F16>) {
    return tile::fma(tile::broadcast(*a), tile::load_half(b), acc);
  } else {
    return tile::fma(tile::broadcast(*a), tile::load(b), acc);
  }
}

/// Keys and values of a block of 64 positions, by groups of 16. Groups that hold nothing to see point to one that does.
template <class E>
struct BlockGroups {
  const typename Stored<E>::type *k[kBlockGroups], *v[kBlockGroups];
  int begin, end;  // the groups that hold something to see
  int keys;        // of the sequence, from the first position of the block
};

/// scores[r, 16 j + lane] = q[r] . key `lane` of group j, for ROWS rows. q: [rows, D padded to 16]; scores: [rows, 64].
template <class E, int D, int ROWS>
inline void dot_keys(const Operand<E>* q, const BlockGroups<E>& block, float* scores) {
  constexpr int pack = Stored<E>::pack, width = stored_width<E>(D), kStride = (D + 15) / 16 * 16, V = kStripVectors;
  for (int first = 0; first < kBlockGroups; first += V) {
    tile::Floats sums[ROWS][V];
    for (int r = 0; r < ROWS; ++r)
      for (int j = 0; j < V; ++j) sums[r][j] = tile::zero();
    for (int i = 0; i < width; i += pack) {
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j)
          sums[r][j] = multiply_add<E>(sums[r][j], block.k[first + j] + i * kKeyGroup, q + r * kStride + i);
    }
    for (int r = 0; r < ROWS; ++r)
      for (int j = 0; j < V; ++j) tile::store(scores + r * kBlockKeys + (first + j) * 16, sums[r][j]);
  }
}

/// acc[r, 16 first + lane] = acc * scale[r] + weights[r] . values, for V vectors of LAST lanes in the last one.
/// weights: [rows, 64]; acc: [rows, stride].
template <class E, int DV, int ROWS, int V, int LAST>
inline void add_vectors(const Operand<E>* weights, const BlockGroups<E>& block, int first, const float* scale, float* acc,
                        int stride) {
  using Type = typename Stored<E>::type;
  constexpr int pack = Stored<E>::pack, width = stored_width<E>(DV);
  tile::Floats sums[ROWS][V];
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < V; ++j)
      sums[r][j] = tile::mul(tile::load(acc + r * stride + (first + j) * 16), tile::broadcast(scale[r]));
  const auto step = [&](const Type* values, const Operand<E>* w) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) sums[r][j] = multiply_add<E>(sums[r][j], values + j * 16 * pack, w + r * kBlockKeys);
  };
  // A step of which not every lane, or not every key, may be read: what lies there may be anything, even NaN.
  const auto step_of_part = [&](const Type* values, const Operand<E>* w, int keys) {
    Type copy[V * 16 * pack] = {};
    for (int i = 0; i < ((V - 1) * 16 + LAST) * pack; ++i)
      if (i % pack < keys) copy[i] = values[i];
    step(copy, w);
  };
  for (int g = block.begin; g < block.end; ++g) {
    const Type* values = block.v[g] + first * 16 * pack;
    const Operand<E>* w = weights + g * kKeyGroup;
    const int keys = std::min(kKeyGroup, block.keys - g * kKeyGroup), whole = keys / pack * pack;
    for (int key = 0; key < whole; key += pack, values += width * pack, w += pack) {
      if constexpr (LAST == 16) {
        step(values, w);
      } else {
        step_of_part(values, w, pack);
      }
    }
    if (whole < keys) step_of_part(values, w, keys - whole);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < V; ++j) tile::store(acc + r * stride + (first + j) * 16, sums[r][j]);
}

/// acc[r] = acc[r] * scale[r] + weights[r] . values of the block, for ROWS rows. acc: [rows, DV padded to 16].
template <class E, int DV, int ROWS>
inline void add_values(const Operand<E>* weights, const BlockGroups<E>& block, const float* scale, float* acc) {
  constexpr int V = kStripVectors, whole = DV / 16 / V * V, rest = (DV + 15) / 16 - whole, width = (DV + 15) / 16 * 16;
  for (int first = 0; first < whole; first += V) add_vectors<E, DV, ROWS, V, 16>(weights, block, first, scale, acc, width);
  if constexpr (rest > 0) add_vectors<E, DV, ROWS, rest, DV % 16 ? DV % 16 : 16>(weights, block, whole, scale, acc, width);
}

}  // namespace llmc
