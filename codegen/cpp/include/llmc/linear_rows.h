// Several tiles of a weight by several rows of activations: the loops around the kernels.
#pragma once

#include <algorithm>

#include "llmc/linear_kernels.h"
#include "llmc/linear_panel.h"

namespace llmc {

/// Activations in blocks of `block` groups: [blocks][rows][groups of the block].
template <class Format>
struct Activations {
  Group<Format>* groups;
  int64_t rows;
  int count, block;

  /// Group `first`, the first one of its block, in row `t`; rows of this block are stride(first) apart.
  Group<Format>* at(int64_t t, int first) const { return groups + rows * first + t * stride(first); }
  int stride(int first) const { return std::min(block, count - first); }
};

/// Tiles and rows that the kernels of a format take at a time.
template <class Format>
struct Shape {
  static constexpr int one_row_tiles = Format::quantized ? tile::Registers::one_row_tiles : tile::Registers::float_tiles;
  static constexpr int tiles = Format::quantized ? tile::Registers::int_tiles : tile::Registers::float_tiles;
  static constexpr int rows = Format::quantized ? tile::Registers::int_rows : tile::Registers::float_rows;
  static constexpr int block = Format::quantized ? 8 : 16;  // groups of a block of many rows: its weights fit a cache
};

/// Calls `multiply` for at most J tiles and R rows.
template <class Format, int J, int R>
inline void multiply_up_to(int count, int rows, const Tile* tiles, const Group<Format>* x, int64_t stride, int groups, float* y,
                           int64_t width, bool resume) {
  if constexpr (J > 1)
    if (count < J) return multiply_up_to<Format, J - 1, R>(count, rows, tiles, x, stride, groups, y, width, resume);
  if constexpr (R > 1)
    if (rows < R) return multiply_up_to<Format, J, R - 1>(count, rows, tiles, x, stride, groups, y, width, resume);
  multiply<Format, J, R>(tiles, x, stride, groups, y, width, resume);
}

/// y[rows, width] of `count` tiles, numbered `indices`, and rows first..: J tiles and R rows at a time.
template <class Format, int J, int R>
void linear_direct(const Weights& weights, const int* indices, int count, const Activations<Format>& x, int64_t first, int rows,
                   float* y, int64_t width) {
  for (int block = 0; block < x.count; block += x.block) {
    const int groups = x.stride(block);
    for (int j = 0; j < count; j += J) {
      Tile tiles[J] = {};
      for (int i = 0; i < std::min(J, count - j); ++i) tiles[i] = tile_at<Format>(weights, indices[j + i], x.count, block);
      for (int r = 0; r < rows; r += R)
        multiply_up_to<Format, J, R>(count - j, rows - r, tiles, x.at(first + r, block), groups, groups,
                                     y + r * width + j * kTileRows, width, block > 0);
    }
  }
}

/// Calls `multiply_panel` for at most R rows.
template <bool HasMin, int J, int R>
inline void multiply_panel_up_to(int rows, const PanelGroup<HasMin>* panel, const QuantizedGroup* x, int groups, float* y,
                                 int64_t width, bool resume) {
  if constexpr (R > 1)
    if (rows < R) return multiply_panel_up_to<HasMin, J, R - 1>(rows, panel, x, groups, y, width, resume);
  multiply_panel<HasMin, J, R>(panel, x, groups, groups, y, width, resume);
}

/// Fills a panel with at most J tiles and multiplies it by all rows.
template <class Format, int J>
void linear_by_panel(int count, const Tile* tiles, PanelGroup<Format::has_min>* panel, const QuantizedGroup* x, int rows,
                     int groups, float* y, int64_t width, bool resume) {
  if constexpr (J > 1)
    if (count < J) return linear_by_panel<Format, J - 1>(count, tiles, panel, x, rows, groups, y, width, resume);
  fill_panel<Format, J>(tiles, groups, panel);
  for (int r = 0; r < rows; r += kPanelRows)
    multiply_panel_up_to<Format::has_min, J, kPanelRows>(rows - r, panel, x + r * groups, groups, y + r * width, width, resume);
}

/// The same for many rows of integer weights.
template <class Format>
[[gnu::noinline]] void linear_by_panels(const Weights& weights, const int* indices, int count, const Activations<Format>& x,
                                        int64_t first, int rows, float* y, int64_t width, void* space) {
  auto* panel = static_cast<PanelGroup<Format::has_min>*>(space);
  for (int block = 0; block < x.count; block += x.block) {
    const int groups = x.stride(block);
    for (int j = 0; j < count; j += kPanelTiles) {
      const int left = std::min(kPanelTiles, count - j);
      Tile tiles[kPanelTiles] = {};
      for (int i = 0; i < left; ++i) tiles[i] = tile_at<Format>(weights, indices[j + i], x.count, block);
      linear_by_panel<Format, kPanelTiles>(left, tiles, panel, x.at(first, block), rows, groups, y + j * kTileRows, width,
                                           block > 0);
    }
  }
}

}  // namespace llmc
