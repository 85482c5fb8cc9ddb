// Weight formats: how a matrix of N rows and K inputs lies in memory.
//
// Rows are taken 16 at a time (a tile), inputs 32 at a time (a group); both are padded with zeros. In a tile the 16
// rows are interleaved, so one broadcast activation meets 16 rows in one vector instruction and no sum across lanes is
// needed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmc {

inline constexpr int kTileRows = 16;
inline constexpr int kGroupInputs = 32;

/// Groups that K inputs fill, the last one padded.
constexpr int group_count(int inputs) { return (inputs + kGroupInputs - 1) / kGroupInputs; }

/// The parts of a weight, each [tiles, ...]; those that the format lacks are null.
struct Weights {
  const void* data;
  const void* scales;
  const void* extra;
};

// Each format says what a group of a tile takes in each part, in bytes, and the type of one stored element; integer
// formats also the unit of their integer sums in steps of the scale.

/// data float [tiles, KP, 16].
struct F32 {
  using type = float;
  static constexpr bool quantized = false;
  static constexpr int data_bytes = 2048, scale_bytes = 0, extra_bytes = 0;
};

/// data half [tiles, KP, 16].
struct F16 {
  using type = uint16_t;
  static constexpr bool quantized = false;
  static constexpr int data_bytes = 1024, scale_bytes = 0, extra_bytes = 0;
};

/// data bfloat16 [tiles, KP/2, 16, 2].
struct BF16 {
  using type = uint16_t;
  static constexpr bool quantized = false;
  static constexpr int data_bytes = 1024, scale_bytes = 0, extra_bytes = 0;
};

/// quants u8 [tiles, KP/4, 16, 4]; scales half [tiles, KP/32, 16]. weight = scale * (quant - 128)
struct Int8 {
  using type = uint8_t;
  static constexpr bool quantized = true, zeros = false, has_min = false;
  static constexpr float step = 1;
  static constexpr int data_bytes = 512, scale_bytes = 32, extra_bytes = 0;
};

/// quants u8 [tiles, KP/32, 4, 16, 4], byte (j, r, i) with input 4j+i below, 16+4j+i above; scales half [tiles, KP/32,
/// 16]; zeros u8 [tiles, KP/32, 16] in eighths of a step, 0..120. weight = scale / 8 * (8 * quant - zero)
struct Int4 {
  using type = uint8_t;
  static constexpr bool quantized = true, zeros = true, has_min = false;
  static constexpr float step = 0.125f;
  static constexpr int data_bytes = 256, scale_bytes = 32, extra_bytes = 16;
};

/// quants as Int4; scales and mins half [tiles, KP/32, 16]. weight = scale * quant + min
struct Int4M {
  using type = uint8_t;
  static constexpr bool quantized = true, zeros = false, has_min = true;
  static constexpr float step = 1;
  static constexpr int data_bytes = 256, scale_bytes = 32, extra_bytes = 32;
};

/// One tile of a weight from one of its groups on.
struct Tile {
  const uint8_t* data;
  const uint8_t* scales;
  const uint8_t* extra;
};

/// `tile` from `groups` further groups on.
template <class Format>
inline Tile tile_after(const Tile& tile, int64_t groups) {
  return {tile.data + groups * Format::data_bytes, tile.scales + groups * Format::scale_bytes,
          tile.extra + groups * Format::extra_bytes};
}

/// Tile `index` of a weight of `groups` groups of inputs, from group `first` on.
template <class Format>
inline Tile tile_at(const Weights& weights, int64_t index, int groups, int first = 0) {
  const Tile all = {static_cast<const uint8_t*>(weights.data), static_cast<const uint8_t*>(weights.scales),
                    static_cast<const uint8_t*>(weights.extra)};
  return tile_after<Format>(all, index * groups + first);
}

}  // namespace llmc
