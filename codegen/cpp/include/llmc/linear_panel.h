// Many rows by integer weights: a few tiles are unpacked for a block of inputs into a panel that stays in the
// first-level cache, and the panel is multiplied by all rows.
#pragma once

#include "llmc/linear_kernels.h"

namespace llmc {

inline constexpr int kPanelTiles = tile::Registers::panel_tiles;
inline constexpr int kPanelRows = tile::Registers::panel_rows;
inline constexpr int kPanelGroups = 8;

/// What a panel holds beside unsigned bytes: a scale for each row and group, a minimum too, or scales for both halves.
enum class Panel { kScales, kMins, kHalves };
template <class Format>
inline constexpr Panel kPanel = Format::has_min ? Panel::kMins : Format::parts == 2 ? Panel::kHalves : Panel::kScales;

/// A group of a tile in a panel: unsigned bytes as `unpack` makes them, and the others as floats.
template <Panel KIND>
struct alignas(64) PanelGroup {
  uint8_t weights[512];
  float scales[16], extra[16];
};
template <>
struct alignas(64) PanelGroup<Panel::kScales> {
  uint8_t weights[512];
  float scales[16];
};

/// The activations that a panel is multiplied by.
template <Panel KIND>
using PanelInput = std::conditional_t<KIND == Panel::kHalves, HalvesGroup, QuantizedGroup>;

/// Unpacks `groups` groups of J tiles to panel[group][tile].
template <class Format, int J>
[[gnu::noinline]] void fill_panel(const Tile* tiles, int groups, PanelGroup<kPanel<Format>>* panel) {
  for (int j = 0; j < J; ++j) {
    for (int g = 0; g < groups; ++g) {
      Tile w = tile_after<Format>(tiles[j], g);
      auto& to = panel[g * J + j];
      tile::Bytes above = tile::no_bytes();
      if constexpr (Format::zeros) above = tile::above_zeros(w.extra);
      const auto step = [&]<int I>() { tile::store_bytes(to.weights + 64 * I, unpack<Format, I>(w.data, above)); };
      step.template operator()<0>(), step.template operator()<4>(), step.template operator()<1>();
      step.template operator()<5>(), step.template operator()<2>(), step.template operator()<6>();
      step.template operator()<3>(), step.template operator()<7>();
      tile::load_half(w.scales).store(to.scales);
      if constexpr (Format::has_min) tile::load_half(w.extra).store(to.extra);
      if constexpr (Format::parts == 2) tile::load_half(w.scales + 32).store(to.extra);
    }
  }
}

/// y[r, 16*j..] (+)= panel tile j * x[r] for R rows and J tiles, in the order of operations of `multiply`.
template <Panel KIND, int J, int R>
[[gnu::noinline]] void multiply_panel(const PanelGroup<KIND>* panel, const PanelInput<KIND>* x, int64_t x_stride,
                                      int groups, float* y, int64_t y_stride, bool resume) {
  F32x16 acc[R][J];
  LLMC_UNROLL for (int r = 0; r < R; ++r)
    LLMC_UNROLL for (int j = 0; j < J; ++j)
      acc[r][j] = resume ? F32x16::load(y + r * y_stride + 16 * j) : F32x16::zero();
  for (int g = 0; g < groups; ++g, ++x, panel += J) {
    const auto add = [&]<int PART, int COUNT>() __attribute__((always_inline)) {
      tile::Ints sums[R][J];
      LLMC_UNROLL for (int r = 0; r < R; ++r)
        LLMC_UNROLL for (int j = 0; j < J; ++j) sums[r][j] = tile::broadcast_int(offset_of<PART>(x[r * x_stride]));
      LLMC_UNROLL for (int i = COUNT * PART; i < COUNT * (PART + 1); ++i) {
        tile::Bytes bytes[J];
        LLMC_UNROLL for (int j = 0; j < J; ++j) bytes[j] = tile::load_bytes(panel[j].weights + 64 * i);
        LLMC_UNROLL for (int r = 0; r < R; ++r)
          LLMC_UNROLL for (int j = 0; j < J; ++j)
            sums[r][j] = dot<KIND != Panel::kScales>(sums[r][j], bytes[j], x[r * x_stride].x + 4 * i);
      }
      LLMC_UNROLL for (int j = 0; j < J; ++j) {
        const float* scales = panel[j].scales;
        if constexpr (PART == 1) scales = panel[j].extra;
        const F32x16 scale = F32x16::load(scales);
        LLMC_UNROLL for (int r = 0; r < R; ++r)
          acc[r][j] = fma(tile::to_floats(sums[r][j]), scale * F32x16::broadcast(x[r * x_stride].scale), acc[r][j]);
      }
    };
    add.template operator()<0, KIND == Panel::kHalves ? 4 : 8>();
    if constexpr (KIND == Panel::kHalves) add.template operator()<1, 4>();
    if constexpr (KIND == Panel::kMins) {
      LLMC_UNROLL for (int j = 0; j < J; ++j) {
        const F32x16 least = F32x16::load(panel[j].extra);
        LLMC_UNROLL for (int r = 0; r < R; ++r)
          acc[r][j] = fma(least, F32x16::broadcast(x[r * x_stride].scaled_sum), acc[r][j]);
      }
    }
  }
  LLMC_UNROLL for (int r = 0; r < R; ++r)
    LLMC_UNROLL for (int j = 0; j < J; ++j) acc[r][j].store(y + r * y_stride + 16 * j);
}

/// Asks for the weights of the next panel in parts, while this one is multiplied.
template <class Format>
class PanelAhead {
 public:
  PanelAhead(const Tile* tiles, int groups, int parts)
      : tiles_(tiles),
        groups_(groups),
        lines_(kPanelTiles * groups * Format::data_bytes / 64),
        each_((lines_ + parts - 1) / parts) {}

  void step() {
    for (const int end = std::min(lines_, line_ + each_); line_ < end; ++line_) {
      const Tile& tile = tiles_[line_ % kPanelTiles];
      const int byte = line_ / kPanelTiles * 64;
      __builtin_prefetch(tile.data + byte, 0, 2);
      if (byte < entry_count<Format>(groups_) * Format::scale_bytes) __builtin_prefetch(tile.scales + byte, 0, 2);
      if (byte < entry_count<Format>(groups_) * Format::extra_bytes) __builtin_prefetch(tile.extra + byte, 0, 2);
    }
  }

 private:
  const Tile* tiles_;
  int groups_, lines_, each_, line_ = 0;
};

}  // namespace llmc
