// The paged cache of keys and values of one layer, as attention reads it.
//
//   K: [blocks][key heads][BS / 16][D / P][16][P]   16 keys side by side: a vector holds one element of 16 keys, so
//                                                   their scores grow in 16 lanes, nothing is summed across lanes
//   V: [blocks][key heads][BS / 16][16 / P][DV][P]  a vector holds 16 elements of P keys
//
// P is how many values one dot-product instruction takes together: 2 for bf16, else 1. D and DV are padded to a
// multiple of P. The block size BS is a multiple of 16; large blocks (256) are read from memory the fastest.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "llmc/formats.h"
#include "llmc/quantize.h"

namespace llmc {

inline constexpr int kKeyGroup = 16;  // keys that share a vector

/// How the cache holds an element type E: F32, F16 or BF16.
template <class E>
struct Stored {
  using type = typename E::type;
  static constexpr int pack = std::is_same_v<E, BF16> ? 2 : 1;  // P of the layout
};

/// One layer's keys and values.
template <class E>
struct Cache {
  typename Stored<E>::type *k, *v;
  int hk, d, dv, block_size;
};

/// The elements that a key or a value of `width` takes in the cache.
template <class E>
constexpr int stored_width(int width) {
  return (width + Stored<E>::pack - 1) / Stored<E>::pack * Stored<E>::pack;
}

/// The elements of all keys (or values) of one layer.
template <class E>
constexpr size_t cache_elements(int64_t blocks, int block_size, int heads, int width) {
  return static_cast<size_t>(blocks * heads * block_size * stored_width<E>(width));
}

/// Index of the first element of the 16 keys (or values) of `head` that offset `offset` of a block is among.
template <class E, int WIDTH>
inline int64_t group_index(const Cache<E>& cache, int64_t block, int64_t offset, int head) {
  const int64_t group = (block * cache.hk + head) * (cache.block_size / kKeyGroup) + offset / kKeyGroup;
  return group * (kKeyGroup * stored_width<E>(WIDTH));
}

template <class E>
inline typename Stored<E>::type to_stored(float x) {
  if constexpr (std::is_same_v<E, BF16>) {
    return to_bfloat16(x);
  } else if constexpr (std::is_same_v<E, F16>) {
    return std::bit_cast<uint16_t>(static_cast<_Float16>(x));
  } else {
    return x;
  }
}

/// Puts k [D] where the key of `slot` (block * BS + offset) belongs. Threads may write different slots at the same
/// time: not a byte of another slot is touched.
template <class E, int D>
inline void write_key(const Cache<E>& cache, int64_t slot, int head, const float* k) {
  constexpr int pack = Stored<E>::pack;
  const int64_t offset = slot % cache.block_size;
  auto* to = cache.k + group_index<E, D>(cache, slot / cache.block_size, offset, head) + offset % kKeyGroup * pack;
  for (int i = 0; i < D; i += pack, to += kKeyGroup * pack) {
    for (int p = 0; p < pack; ++p) to[p] = to_stored<E>(i + p < D ? k[i + p] : 0.0f);
  }
}

/// As `write_key`, for a value v [DV].
template <class E, int DV>
inline void write_value(const Cache<E>& cache, int64_t slot, int head, const float* v) {
  constexpr int pack = Stored<E>::pack, width = stored_width<E>(DV);
  const int64_t offset = slot % cache.block_size, key = offset % kKeyGroup;
  const int64_t group = group_index<E, DV>(cache, slot / cache.block_size, offset, head);
  auto* to = cache.v + group + key / pack * pack * width + key % pack;
  for (int i = 0; i < width; ++i) to[i * pack] = to_stored<E>(i < DV ? v[i] : 0.0f);
}

}  // namespace llmc
