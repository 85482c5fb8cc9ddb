// The inner kernels of linear layers: one tile of a weight by R rows of activations, in registers.
//
// All follow one order of operations for each output, so its bits do not depend on R, the number of rows or the split
// over threads. Integer formats: for each group of 32 inputs an exact integer sum, then acc = fma(sum, scales, acc).
#pragma once

#include <type_traits>

#include "llmc/formats.h"
#include "llmc/quantize.h"
#include "llmc/tile.h"

namespace llmc {

inline constexpr int kFetchBytes = 4096;  // of data, how far ahead weights are fetched

/// Asks for the weights that a kernel will need, kFetchBytes ahead of it, across the end of its tile into the next one.
/// Three parts are three streams, more than the hardware follows well: measured 50 -> 60 GB/s for int4.
template <class Format>
class Ahead {
 public:
  Ahead(const Tile& tile, const Tile& next, int groups) : next_(next), left_(groups - kGroups) {
    at_ = left_ > 0 ? tile_after<Format>(tile, kGroups) : next;
  }

  /// Call once a group, and say whether it is the first of its span.
  void step(bool first) {
    if constexpr (Format::quantized) {
      LLMC_UNROLL for (int i = 0; i < Format::data_bytes; i += 64) __builtin_prefetch(at_.data + i);
      at_.data += Format::data_bytes;
      if (first) {
        __builtin_prefetch(at_.scales);
        if constexpr (Format::extra_bytes != 0) __builtin_prefetch(at_.extra);
        at_.scales += Format::scale_bytes, at_.extra += Format::extra_bytes;
      }
      if (--left_ == 0) at_ = next_;
    }
  }

 private:
  static constexpr int kGroups = kFetchBytes / Format::data_bytes / kSpan<Format> * kSpan<Format>;
  Tile at_, next_;
  int left_;
};

/// Asks for the beginning of a tile, before what is done until it is needed.
template <class Format>
inline void fetch_first(const Tile& tile) {
  for (int i = 0; i < kFetchBytes; i += 64) __builtin_prefetch(tile.data + i);
  constexpr int kEntries = entry_count<Format>(kFetchBytes / Format::data_bytes);
  for (int i = 0; i < kEntries * Format::scale_bytes; i += 64) __builtin_prefetch(tile.scales + i);
  for (int i = 0; i < kEntries * Format::extra_bytes; i += 64) __builtin_prefetch(tile.extra + i);
}

/// The four inputs 4*J.. of a group for 16 rows, as unsigned bytes: int8 and int6 as stored, int4m 0..15, int4 8q - zero
/// + 128.
template <class Format, int J>
inline tile::Bytes unpack(const uint8_t* data, const tile::Bytes& above) {
  if constexpr (Format::data_bytes == 512) {
    return tile::load_bytes(data + 64 * J);
  } else {
    const tile::Bytes both = tile::load_bytes(data + 64 * (J % 4));
    if constexpr (Format::zeros)
      return tile::add_bytes(J < 4 ? tile::low_nibbles_times_8(both) : tile::high_nibbles_times_8(both), above);
    const tile::Bytes low = J < 4 ? tile::low_nibbles(both) : tile::high_nibbles(both);
    if constexpr (Format::has_min) return low;
    return tile::add_bytes(low, tile::pairs_times_16<J % 4>(tile::load_bytes(data + 256 + 64 * (J / 4))));
  }
}

/// sum + unpacked weights * inputs.
template <bool Small>
inline tile::Ints dot(const tile::Ints& sum, const tile::Bytes& weights, const int8_t* x) {
  return Small ? tile::dot_small(sum, weights, x) : tile::dot(sum, weights, x);
}

/// What takes off a sum what unsigned weights are above their values.
template <int PART, class Inputs>
inline int32_t offset_of(const Inputs& x) {
  if constexpr (PART == 1) return x.second_offset;
  else return x.offset;
}

/// sums[r] = the integer sums of a part of a group for R rows that lie `stride` groups apart.
template <class Format, int R, int PART>
inline void sum_group(const Tile& w, const Group<Format>* x, int64_t stride, tile::Ints* sums) {
  // Up to two rows of int4 cost less with the zeros taken off the sums than off the weights.
  constexpr bool kApart = Format::zeros && R <= 2;
  using As = std::conditional_t<kApart, Int4M, Format>;
  tile::Bytes above = tile::no_bytes();
  if constexpr (As::zeros) above = tile::above_zeros(w.extra);
  LLMC_UNROLL for (int r = 0; r < R; ++r) sums[r] = tile::broadcast_int(As::bias == 0 ? 0 : offset_of<PART>(x[r * stride]));
  const auto step = [&]<int I>() __attribute__((always_inline)) {
    const tile::Bytes bytes = unpack<As, I>(w.data, above);
    LLMC_UNROLL for (int r = 0; r < R; ++r) sums[r] = dot<As::small>(sums[r], bytes, x[r * stride].x + 4 * I);
  };
  if constexpr (Format::parts == 1) {
    step.template operator()<0>(), step.template operator()<4>(), step.template operator()<1>();
    step.template operator()<5>(), step.template operator()<2>(), step.template operator()<6>();
    step.template operator()<3>(), step.template operator()<7>();
  } else {
    step.template operator()<4 * PART>(), step.template operator()<4 * PART + 1>();
    step.template operator()<4 * PART + 2>(), step.template operator()<4 * PART + 3>();
  }
  if constexpr (kApart) {
    LLMC_UNROLL for (int r = 0; r < R; ++r) sums[r] = tile::eighths(sums[r], w.extra, x[r * stride].minus_sum);
  }
}

/// acc[r] += a group of R rows in integers, its parts in ascending order.
template <class Format, int R>
  requires(Format::quantized)
inline void add_group(const Tile& w, const Group<Format>* x, int64_t stride, F32x16* acc) {
  const auto add = [&]<int PART>() __attribute__((always_inline)) {
    tile::Ints sums[R];
    sum_group<Format, R, PART>(w, x, stride, sums);
    const F32x16 scale = tile::load_half(w.scales + 32 * PART);
    LLMC_UNROLL for (int r = 0; r < R; ++r)
      acc[r] = fma(tile::to_floats(sums[r]), scale * F32x16::broadcast(x[r * stride].scale), acc[r]);
  };
  add.template operator()<0>();
  if constexpr (Format::parts == 2) add.template operator()<1>();
  if constexpr (Format::has_min) {
    const F32x16 least = tile::load_half(w.extra);
    LLMC_UNROLL for (int r = 0; r < R; ++r) acc[r] = fma(least, F32x16::broadcast(x[r * stride].scaled_sum), acc[r]);
  }
}

/// The same in bfloat16: pairs of inputs in ascending order.
template <class Format, int R>
inline void add_group(const Tile& w, const Bfloat16Group* x, int64_t stride, F32x16* acc) {
#pragma GCC unroll 4
  for (int k = 0; k < kGroupInputs; k += 2)
    LLMC_UNROLL for (int r = 0; r < R; ++r) acc[r] = tile::dot_bf16(acc[r], w.data + 32 * k, x[r * stride].x + k);
}

/// The same in floats: inputs in ascending order.
template <class Format, int R>
inline void add_group(const Tile& w, const FloatGroup* x, int64_t stride, F32x16* acc) {
  const auto add = [&](int k, F32x16 weights) __attribute__((always_inline)) {
    LLMC_UNROLL for (int r = 0; r < R; ++r) acc[r] = fma(F32x16::broadcast(x[r * stride].x[k]), weights, acc[r]);
  };
  if constexpr (std::is_same_v<Format, FP8>) {
    const F32x16 scale = tile::load(reinterpret_cast<const float*>(w.scales)) * tile::broadcast(tile::kE4m3Unit);
    for (int k = 0; k < kGroupInputs; k += 4) {
      const tile::Bytes numbers = tile::load_bytes(w.data + 16 * k);
      add(k, tile::e4m3<0>(numbers) * scale), add(k + 1, tile::e4m3<1>(numbers) * scale);
      add(k + 2, tile::e4m3<2>(numbers) * scale), add(k + 3, tile::e4m3<3>(numbers) * scale);
    }
  } else {
#pragma GCC unroll 4
    for (int k = 0; k < kGroupInputs; ++k) {
      if constexpr (std::is_same_v<Format, F16>) add(k, tile::load_half(w.data + 32 * k));
      else add(k, F32x16::loadu(reinterpret_cast<const float*>(w.data) + 16 * k));
    }
  }
}

/// y[r, 16] (+)= w * x[r] over `groups` groups, for R rows. x and y are those of the first row; further rows lie
/// x_stride groups and y_stride floats apart. y continues from what it holds if `resume`. `next`: the tile that is
/// needed after w.
template <class Format, int R>
[[gnu::noinline]] void multiply(Tile w, const Tile& next, const Group<Format>* x, int64_t x_stride, int groups,
                                float* y, int64_t y_stride, bool resume) {
  F32x16 acc[R];
  LLMC_UNROLL for (int r = 0; r < R; ++r) acc[r] = resume ? F32x16::load(y + r * y_stride) : F32x16::zero();
  Ahead<Format> ahead(w, next, groups);
  const auto step = [&](bool first) __attribute__((always_inline)) {
    ahead.step(first);
    add_group<Format, R>(w, x++, x_stride, acc);
    w.data += Format::data_bytes;
  };
  constexpr int kEntry = Format::span == 0 ? 0 : 1;
  int g = 0;
  for (; g + kSpan<Format> <= groups; g += kSpan<Format>) {
    LLMC_UNROLL for (int i = 0; i < kSpan<Format>; ++i) step(i == 0);
    w.scales += kEntry * Format::scale_bytes, w.extra += kEntry * Format::extra_bytes;
  }
  for (; g < groups; ++g) step(false);
  LLMC_UNROLL for (int r = 0; r < R; ++r) acc[r].store(y + r * y_stride);
}

}  // namespace llmc
