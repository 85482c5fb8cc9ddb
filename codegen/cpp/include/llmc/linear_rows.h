// Several tiles of a weight by several rows of activations: the loops around the kernels.
#pragma once

#include <algorithm>

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

/// Groups in a block of many rows: what all rows and a few tiles need of one stays in the second-level cache.
template <class Format>
inline constexpr int kSharedGroups = Format::quantized ? kPanelGroups : 512 / sizeof(Group<Format>) * 2;

/// Which tiles of a weight are multiplied: `count` of them, then `kPanelTiles` that will be needed next, to fetch
/// ahead.
struct TileList {
  const Weights& weights;
  const int* indices;
  int count;
};

/// Calls `multiply` for at most R rows.
template <class Format, int R>
inline void multiply_up_to(int rows, const Tile& w, const Tile& next, const Group<Format>* x, int groups, float* y,
                           int64_t width, bool resume) {
  if constexpr (R > 1)
    if (rows < R) return multiply_up_to<Format, R - 1>(rows, w, next, x, groups, y, width, resume);
  multiply<Format, R>(w, next, x, groups, groups, y, width, resume);
}

/// y[rows, width] of the tiles and the rows first.. of x, tile after tile from where the weights lie, for at most
/// `at_a_time` rows at a time.
template <class Format>
[[gnu::noinline]] void linear_direct(const TileList& list, const Activations<Format>& x, int64_t first, int rows,
                                     int at_a_time, float* y, int64_t width) {
  constexpr int kMost = Format::quantized ? tile::Registers::int_rows : tile::Registers::float_rows;
  const int most = std::min(at_a_time, kMost), passes = (rows + most - 1) / most;
  for (int block = 0; block < x.count; block += x.block) {
    const int groups = x.stride(block);
    for (int j = 0; j < list.count; ++j) {
      const Tile w = tile_at<Format>(list.weights, list.indices[j], x.count, block);
      const Tile next = tile_at<Format>(list.weights, list.indices[j + 1], x.count, block);
      for (int pass = 0, r = 0; pass < passes; ++pass) {
        const int n = (rows - r) / (passes - pass);
        multiply_up_to<Format, kMost>(n, w, next, x.at(first + r, block), groups, y + r * width + j * kTileRows, width,
                                      block > 0);
        r += n;
      }
    }
  }
}

/// Calls `multiply_panel` for at most R rows.
template <Panel KIND, int J, int R>
inline void multiply_panel_up_to(int rows, const PanelGroup<KIND>* panel, const PanelInput<KIND>* x, int groups,
                                 float* y, int64_t width, bool resume) {
  if constexpr (R > 1)
    if (rows < R) return multiply_panel_up_to<KIND, J, R - 1>(rows, panel, x, groups, y, width, resume);
  multiply_panel<KIND, J, R>(panel, x, groups, groups, y, width, resume);
}

/// Fetches inputs that a kernel will read.
template <class Group>
inline void fetch_inputs(const Group* x, int count) {
  const auto* bytes = reinterpret_cast<const char*>(x);
  for (int i = 0; i < count * static_cast<int>(sizeof(Group)); i += 64) __builtin_prefetch(bytes + i);
}

/// Fills a panel with at most J tiles and multiplies it by all rows.
template <class Format, int J>
void linear_by_panel(int count, const Tile* tiles, PanelAhead<Format> ahead, PanelGroup<kPanel<Format>>* panel,
                     const Group<Format>* x, int rows, int groups, float* y, int64_t width, bool resume) {
  if constexpr (J > 1)
    if (count < J) return linear_by_panel<Format, J - 1>(count, tiles, ahead, panel, x, rows, groups, y, width, resume);
  fill_panel<Format, J>(tiles, groups, panel);
  for (int r = 0; r < rows; r += kPanelRows) {
    ahead.step();
    fetch_inputs(x + (r + kPanelRows) * groups, kPanelRows * groups);
    multiply_panel_up_to<kPanel<Format>, J, kPanelRows>(rows - r, panel, x + r * groups, groups, y + r * width, width,
                                                        resume);
  }
}

/// The same as `linear_direct` for many rows of integer weights. `panel` has room for kPanelTiles * kPanelGroups.
template <class Format>
[[gnu::noinline]] void linear_by_panels(const TileList& list, const Activations<Format>& x, int64_t first, int rows,
                                        float* y, int64_t width, PanelGroup<kPanel<Format>>* panel) {
  Tile tiles[2][kPanelTiles];
  const auto find = [&](Tile* to, int j, int block) {
    for (int i = 0; i < kPanelTiles; ++i) to[i] = tile_at<Format>(list.weights, list.indices[j + i], x.count, block);
  };
  for (int block = 0; block < x.count; block += x.block) {
    const int groups = x.stride(block);
    for (int j = 0; j < list.count; j += kPanelTiles) {
      find(tiles[0], j, block);
      const bool last = j + kPanelTiles >= list.count, all = last && block + x.block >= x.count;
      find(tiles[1], all ? list.count : last ? 0 : j + kPanelTiles, all ? 0 : last ? block + x.block : block);
      const PanelAhead<Format> ahead(tiles[1], groups, (rows + kPanelRows - 1) / kPanelRows);
      linear_by_panel<Format, kPanelTiles>(list.count - j, tiles[0], ahead, panel, x.at(first, block), rows, groups,
                                           y + j * kTileRows, width, block > 0);
    }
  }
}

}  // namespace llmc
