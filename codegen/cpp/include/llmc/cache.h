// The paged cache of keys and values of one layer, as attention reads it.
//
//   K: [blocks][key heads][BS / 16][D / P][16][P]   16 keys side by side: a vector holds one element of 16 keys, so
//                                                   their scores grow in 16 lanes, nothing is summed across lanes
//   V: [blocks][key heads][BS / 16][16 / P][DV][P]  a vector holds 16 elements of P keys
//
// P is how many values one dot-product instruction takes together: 2 for bf16 and int8, else 1. D and DV are padded to a
// multiple of P. The block size BS is a multiple of 16; large blocks (256) are read from memory the fastest.
//
// A key or value of a head in int8 is integers from -127 to 127 and a scale, a bfloat16, that they are multiplied by. The
// scales of a head's BS keys (or values) in a block follow its BS / 16 groups.
#pragma once

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "llmc/formats.h"
#include "llmc/quantize.h"
#include "llmc/simd.h"

namespace llmc {

inline constexpr int kKeyGroup = 16;  // keys that share a vector

/// How the cache holds an element type E: F32, F16, BF16 or Int8.
template <class E>
struct Stored {
  using type = typename E::type;
  static constexpr int pack = std::is_same_v<E, BF16> ? 2 : 1;  // P of the layout
  static constexpr int scale_bytes = 0;                         // of a key or value
};
template <>
struct Stored<Int8> {
  using type = int8_t;
  static constexpr int pack = 2, scale_bytes = 2;
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
  return static_cast<size_t>(blocks * heads * block_size * (stored_width<E>(width) + Stored<E>::scale_bytes));
}

/// Index of the first element of the keys (or values) of `head` in a block.
template <class E, int WIDTH>
inline int64_t head_index(const Cache<E>& cache, int64_t block, int head) {
  return (block * cache.hk + head) * cache.block_size * (stored_width<E>(WIDTH) + Stored<E>::scale_bytes);
}

/// Index of the first element of the 16 keys (or values) of `head` that offset `offset` of a block is among.
template <class E, int WIDTH>
inline int64_t group_index(const Cache<E>& cache, int64_t block, int64_t offset, int head) {
  return head_index<E, WIDTH>(cache, block, head) + offset / kKeyGroup * (kKeyGroup * stored_width<E>(WIDTH));
}

/// Index of the scale of the key (or value) of `head` at offset `offset` of a block: two elements.
template <int WIDTH>
inline int64_t scale_index(const Cache<Int8>& cache, int64_t block, int64_t offset, int head) {
  return head_index<Int8, WIDTH>(cache, block, head) + cache.block_size * stored_width<Int8>(WIDTH) + 2 * offset;
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

/// Rounds x [N] to integers of a scale: absmax / 127 rounded up to a bfloat16, or 0 where that would be subnormal.
/// Returns the scale; NaN and infinity make it NaN or infinite.
template <int N>
inline uint16_t to_levels(const float* x, int8_t* levels) {
  F32x16 most = F32x16::zero();
  bool number = true;
  for (int i = 0; i < N; i += 16) {
    const F32x16 size = abs(load_16(x + i, N - i));
    number &= to_bits(size == size) == 0xffff;
    most = max(most, size);
  }
  const float exact = reduce_max(most) / 127.0f;
  const auto scale = static_cast<uint16_t>(exact < FLT_MIN ? 0 : (std::bit_cast<uint32_t>(exact) + 0xffff) >> 16);
  const F32x16 inverse = F32x16::broadcast(scale == 0 ? 0 : 1 / to_float(bf16{scale}));
  for (int i = 0; i < N; i += 16) {
    const F32x16 level = round(load_16(x + i, N - i) * inverse);
    alignas(64) float lanes[16];
    min(max(level, F32x16::broadcast(-127)), F32x16::broadcast(127)).store(lanes);
    for (int j = 0; j < std::min(16, N - i); ++j) levels[i + j] = static_cast<int8_t>(lanes[j]);
  }
  return number ? scale : uint16_t{0x7fc0};
}

/// Puts k [D] where the key of `slot` (block * BS + offset) belongs. Threads may write different slots at the same
/// time: not a byte of another slot is touched.
template <class E, int D>
inline void write_key(const Cache<E>& cache, int64_t slot, int head, const float* k) {
  constexpr int pack = Stored<E>::pack;
  const int64_t block = slot / cache.block_size, offset = slot % cache.block_size;
  auto* to = cache.k + group_index<E, D>(cache, block, offset, head) + offset % kKeyGroup * pack;
  if constexpr (std::is_same_v<E, Int8>) {
    int8_t levels[stored_width<E>(D)] = {};
    const uint16_t scale = to_levels<D>(k, levels);
    std::memcpy(cache.k + scale_index<D>(cache, block, offset, head), &scale, sizeof scale);
    for (int i = 0; i < D; i += pack, to += kKeyGroup * pack) std::memcpy(to, levels + i, pack);
  } else {
    for (int i = 0; i < D; i += pack, to += kKeyGroup * pack) {
      for (int p = 0; p < pack; ++p) to[p] = to_stored<E>(i + p < D ? k[i + p] : 0.0f);
    }
  }
}

/// As `write_key`, for a value v [DV].
template <class E, int DV>
inline void write_value(const Cache<E>& cache, int64_t slot, int head, const float* v) {
  constexpr int pack = Stored<E>::pack, width = stored_width<E>(DV);
  const int64_t block = slot / cache.block_size, offset = slot % cache.block_size, key = offset % kKeyGroup;
  auto* to = cache.v + group_index<E, DV>(cache, block, offset, head) + key / pack * pack * width + key % pack;
  if constexpr (std::is_same_v<E, Int8>) {
    int8_t levels[width] = {};
    const uint16_t scale = to_levels<DV>(v, levels);
    std::memcpy(cache.v + scale_index<DV>(cache, block, offset, head), &scale, sizeof scale);
    for (int i = 0; i < width; ++i) to[i * pack] = levels[i];
  } else {
    for (int i = 0; i < width; ++i) to[i * pack] = to_stored<E>(i < DV ? v[i] : 0.0f);
  }
}

}  // namespace llmc
