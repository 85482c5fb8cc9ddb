// The inner kernels of linear layers: J tiles of a weight by R rows of activations, in registers.
//
// All follow one order of operations for each output, so its bits do not depend on J, R, the number of rows or the split
// over threads. Integer formats: for each group of 32 inputs an exact integer sum, then acc = fma(sum, scales, acc).
#pragma once

#include "llmc/formats.h"
#include "llmc/quantize.h"
#include "llmc/tile.h"

namespace llmc {

/// The four inputs 4*J.. of a group for 16 rows, as unsigned bytes: int8 as stored, int4m 0..15, int4 8q - zero + 128.
template <class Format, int J>
inline tile::Bytes unpack(const uint8_t* data, tile::Bytes above) {
  if constexpr (Format::data_bytes == 512) return tile::load_bytes(data + 64 * J);
  const tile::Bytes both = tile::load_bytes(data + 64 * (J % 4));
  if constexpr (Format::has_min) return J < 4 ? tile::low_nibbles(both) : tile::high_nibbles(both);
  return tile::add_bytes(J < 4 ? tile::low_nibbles_times_8(both) : tile::high_nibbles_times_8(both), above);
}

/// sum + unpacked weights * inputs.
template <class Format>
inline tile::Ints dot(const tile::Ints& sum, const tile::Bytes& weights, const int8_t* x) {
  return Format::has_min ? tile::dot_nibbles(sum, weights, x) : tile::dot(sum, weights, x);
}

/// One tile by one row of activations with the unpacking that is cheapest for a single row.
inline tile::Ints sum_int4(const Tile& w, const QuantizedGroup& x) {
  tile::Ints sum = tile::broadcast_int(0);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const tile::Bytes both = tile::load_bytes(w.data + 64 * j);
    sum = tile::dot_nibbles(sum, tile::low_nibbles(both), x.x + 4 * j);
    sum = tile::dot_nibbles(sum, tile::high_nibbles(both), x.x + 16 + 4 * j);
  }
  return tile::eighths(sum, w.extra, x.minus_sum);
}

/// y[r, 16*j..] (+)= tiles[j] * x[r], over `groups` groups of integer weights. y continues from what it holds if `resume`.
template <class Format, int J, int R>
[[gnu::noinline]] void multiply(const Tile* tiles, const QuantizedGroup* x, int64_t x_stride, int groups, float* y,
                                int64_t y_stride, bool resume) {
  tile::Floats acc[R][J];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) acc[r][j] = resume ? tile::load(y + r * y_stride + 16 * j) : tile::zero();
  Tile w[J];
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j) w[j] = tiles[j];
  for (int g = 0; g < groups; ++g, ++x) {
    tile::Ints sum[R][J];
    if constexpr (R == 1 && Format::extra_bytes == 16) {
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) sum[0][j] = sum_int4(w[j], *x);
    } else {
      tile::Bytes above[J];
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) {
        if constexpr (Format::extra_bytes == 16) above[j] = tile::above_zeros(w[j].extra);
        else above[j] = tile::no_bytes();
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j) sum[r][j] = tile::broadcast_int(x[r * x_stride].offset);
      const auto step = [&]<int I>() {
        tile::Bytes bytes[J];
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j) bytes[j] = unpack<Format, I>(w[j].data, above[j]);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int j = 0; j < J; ++j) sum[r][j] = dot<Format>(sum[r][j], bytes[j], x[r * x_stride].x + 4 * I);
      };
      step.template operator()<0>(), step.template operator()<4>();
      step.template operator()<1>(), step.template operator()<5>();
      step.template operator()<2>(), step.template operator()<6>();
      step.template operator()<3>(), step.template operator()<7>();
    }
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
      const tile::Floats scale = tile::load_half(w[j].scales);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        acc[r][j] = tile::fma(tile::to_floats(sum[r][j]), tile::mul(scale, tile::broadcast(x[r * x_stride].scale)), acc[r][j]);
      if constexpr (Format::has_min) {
        const tile::Floats least = tile::load_half(w[j].extra);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) acc[r][j] = tile::fma(least, tile::broadcast(x[r * x_stride].scaled_sum), acc[r][j]);
      }
      w[j].data += Format::data_bytes;
      w[j].scales += Format::scale_bytes;
      w[j].extra += Format::extra_bytes;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) tile::store(y + r * y_stride + 16 * j, acc[r][j]);
}

/// The same for weights in floating point.
template <class Format, int J, int R>
[[gnu::noinline]] void multiply(const Tile* tiles, const Group<Format>* x, int64_t x_stride, int groups, float* y,
                                int64_t y_stride, bool resume)
  requires(!Format::quantized)
{
  tile::Floats acc[R][J];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) acc[r][j] = resume ? tile::load(y + r * y_stride + 16 * j) : tile::zero();
  Tile w[J];
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j) w[j] = tiles[j];
  constexpr int kStep = sizeof x->x[0] == 2 ? 2 : 1;                          // inputs in one instruction
  constexpr int kBytes = Format::data_bytes / kGroupInputs * kStep;           // their weights in a tile
  for (int g = 0; g < groups; ++g, ++x) {
#pragma GCC unroll 4
    for (int k = 0; k < kGroupInputs / kStep; ++k) {
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) {
        const uint8_t* data = w[j].data + k * kBytes;
        if constexpr (kStep == 2) {
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) acc[r][j] = tile::dot_bf16(acc[r][j], data, x[r * x_stride].x + 2 * k);
        } else {
          tile::Floats weight;
          if constexpr (Format::data_bytes == 1024) weight = tile::load_half(data);
          else weight = tile::load(reinterpret_cast<const float*>(data));
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) acc[r][j] = tile::fma(tile::broadcast(x[r * x_stride].x[k]), weight, acc[r][j]);
        }
      }
    }
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) w[j].data += Format::data_bytes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) tile::store(y + r * y_stride + 16 * j, acc[r][j]);
}

}  // namespace llmc
