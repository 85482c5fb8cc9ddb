// Linear layers of many rows with integer weights: four tiles of a weight are unpacked for a block of inputs into a panel
// that stays in the first-level cache, and is then multiplied by all rows.
#pragma once

#include "llmc/linear_kernels.h"

namespace llmc {

inline constexpr int kPanelTiles = tile::Registers::panel_tiles;
inline constexpr int kPanelRows = tile::Registers::panel_rows;
inline constexpr int kPanelGroups = 8;

/// A group of a tile in a panel: unsigned bytes as `unpack` makes them, and scales and mins as floats.
template <bool HasMin>
struct PanelGroup {
  uint8_t weights[512];
  float scales[16];
  float mins[HasMin ? 16 : 0];
};

/// Unpacks `groups` groups of J tiles to panel[group][tile].
template <class Format, int J>
[[gnu::noinline]] void fill_panel(const Tile* tiles, int groups, PanelGroup<Format::has_min>* panel) {
  for (int j = 0; j < J; ++j) {
    Tile w = tiles[j];
    PanelGroup<Format::has_min>* to = panel + j;
    for (int g = 0; g < groups; ++g, to += J) {
      tile::Bytes above = tile::no_bytes();
      if constexpr (Format::extra_bytes == 16) above = tile::above_zeros(w.extra);
      const auto step = [&]<int I>() { tile::store_bytes(to->weights + 64 * I, unpack<Format, I>(w.data, above)); };
      step.template operator()<0>(), step.template operator()<1>(), step.template operator()<2>();
      step.template operator()<3>(), step.template operator()<4>(), step.template operator()<5>();
      step.template operator()<6>(), step.template operator()<7>();
      tile::store(to->scales, tile::load_half(w.scales));
      if constexpr (Format::has_min) tile::store(to->mins, tile::load_half(w.extra));
      w.data += Format::data_bytes;
      w.scales += Format::scale_bytes;
      w.extra += Format::extra_bytes;
    }
  }
}

/// y[r, 16*j..] (+)= panel tile j * x[r], in the order of operations of `multiply`.
template <bool HasMin, int J, int R>
[[gnu::noinline]] void multiply_panel(const PanelGroup<HasMin>* panel, const QuantizedGroup* x, int64_t x_stride, int groups,
                                      float* y, int64_t y_stride, bool resume) {
  tile::Floats acc[R][J];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) acc[r][j] = resume ? tile::load(y + r * y_stride + 16 * j) : tile::zero();
  for (int g = 0; g < groups; ++g, ++x, panel += J) {
    tile::Ints sum[R][J];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) sum[r][j] = tile::broadcast_int(x[r * x_stride].offset);
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
      tile::Bytes bytes[J];
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) bytes[j] = tile::load_bytes(panel[j].weights + 64 * i);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j) sum[r][j] = HasMin ? tile::dot_nibbles(sum[r][j], bytes[j], x[r * x_stride].x + 4 * i)
                             : tile::dot(sum[r][j], bytes[j], x[r * x_stride].x + 4 * i);
    }
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
      const tile::Floats scale = tile::load(panel[j].scales);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        acc[r][j] = tile::fma(tile::to_floats(sum[r][j]), tile::mul(scale, tile::broadcast(x[r * x_stride].scale)), acc[r][j]);
      if constexpr (HasMin) {
        const tile::Floats least = tile::load(panel[j].mins);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) acc[r][j] = tile::fma(least, tile::broadcast(x[r * x_stride].scaled_sum), acc[r][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) tile::store(y + r * y_stride + 16 * j, acc[r][j]);
}

}  // namespace llmc
