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

// Each format says what a group of a tile takes of `data`, in bytes, and what an entry of scales and extra takes, which
// is shared by `span` groups: 0 for all groups of a row. Integer formats also say what unsigned bytes are above their
// values (`bias`), whether these are below 128 (`small`), how many parts of a group have a scale of their own (`parts`),
// and the unit of their sums in steps of the scale.

/// data float [tiles, KP, 16].
struct F32 {
  using type = float;
  static constexpr bool quantized = false;
  static constexpr int span = 1;
  static constexpr int data_bytes = 2048, scale_bytes = 0, extra_bytes = 0;
};

/// data half [tiles, KP, 16].
struct F16 {
  using type = uint16_t;
  static constexpr bool quantized = false;
  static constexpr int span = 1;
  static constexpr int data_bytes = 1024, scale_bytes = 0, extra_bytes = 0;
};

/// data bfloat16 [tiles, KP/2, 16, 2].
struct BF16 {
  using type = uint16_t;
  static constexpr bool quantized = false;
  static constexpr int span = 1;
  static constexpr int data_bytes = 1024, scale_bytes = 0, extra_bytes = 0;
};

/// data e4m3 bytes [tiles, KP/4, 16, 4]; scales float [tiles, 16], below 256. weight = scale * number
struct FP8 {
  using type = uint8_t;
  static constexpr bool quantized = false;
  static constexpr int span = 0;
  static constexpr int data_bytes = 512, scale_bytes = 64, extra_bytes = 0;
};

/// quants u8 [tiles, KP/4, 16, 4]; scales half [tiles, KP/32, 16]. weight = scale * (quant - 128)
struct Int8 {
  using type = uint8_t;
  static constexpr bool quantized = true, zeros = false, has_min = false, small = false;
  static constexpr int bias = 128, span = 1, parts = 1;
  static constexpr float step = 1;
  static constexpr int data_bytes = 512, scale_bytes = 32, extra_bytes = 0;
};

/// quants u8 [tiles, KP/32, 6, 16, 4]: the low four bits as those of Int4, then the high two: bits 2j and 2j+1 of byte
/// (4+h, r, i) are of input 16h+4j+i. scales half [tiles, KP/32*PARTS, 16]. weight = scale * (quant - 32)
template <int PARTS>
struct Int6Of {
  using type = uint8_t;
  static constexpr bool quantized = true, zeros = false, has_min = false, small = true;
  static constexpr int bias = 32, span = 1, parts = PARTS;
  static constexpr float step = 1;
  static constexpr int data_bytes = 384, scale_bytes = 32 * PARTS, extra_bytes = 0;
};
using Int6 = Int6Of<1>;
using Int6G16 = Int6Of<2>;

/// quants u8 [tiles, KP/32, 4, 16, 4], byte (j, r, i) with input 4j+i below, 16+4j+i above; for every GROUPS groups
/// scales half and zeros u8 [tiles, ceil(KP/32/GROUPS), 16], these in eighths of a step, 0..120. weight = scale / 8 *
/// (8 * quant - zero)
template <int GROUPS>
struct Int4Of {
  using type = uint8_t;
  static constexpr bool quantized = true, zeros = true, has_min = false, small = false;
  static constexpr int bias = 128, span = GROUPS, parts = 1;
  static constexpr float step = 0.125f;
  static constexpr int data_bytes = 256, scale_bytes = 32, extra_bytes = 16;
};
using Int4 = Int4Of<1>;
using Int4G64 = Int4Of<2>;
using Int4G128 = Int4Of<4>;

/// quants as Int4; scales and mins half [tiles, KP/32, 16]. weight = scale * quant + min
struct Int4M {
  using type = uint8_t;
  static constexpr bool quantized = true, zeros = false, has_min = true, small = true;
  static constexpr int bias = 0, span = 1, parts = 1;
  static constexpr float step = 1;
  static constexpr int data_bytes = 256, scale_bytes = 32, extra_bytes = 32;
};

/// One tile of a weight from one of its groups on.
struct Tile {
  const uint8_t* data;
  const uint8_t* scales;
  const uint8_t* extra;
};

/// Groups that share an entry of scales and extra, as far as they are taken together.
template <class Format>
inline constexpr int kSpan = Format::span == 0 ? 1 : Format::span;

/// Entries of scales and extra of so many groups.
template <class Format>
constexpr int entry_count(int groups) {
  return Format::span == 0 ? 1 : (groups + kSpan<Format> - 1) / kSpan<Format>;
}

/// `tile` from `groups` further groups on; it begins at a group that is the first of its span.
template <class Format>
inline Tile tile_after(const Tile& tile, int64_t groups) {
  const int64_t entries = Format::span == 0 ? 0 : groups / kSpan<Format>;
  return {tile.data + groups * Format::data_bytes, tile.scales + entries * Format::scale_bytes,
          tile.extra + entries * Format::extra_bytes};
}

/// Tile `index` of a weight of `groups` groups of inputs, from group `first` on.
template <class Format>
inline Tile tile_at(const Weights& weights, int64_t index, int groups, int first = 0) {
  const Tile all = {static_cast<const uint8_t*>(weights.data), static_cast<const uint8_t*>(weights.scales),
                    static_cast<const uint8_t*>(weights.extra)};
  const int64_t entries = index * entry_count<Format>(groups);
  const Tile begin = {all.data + index * groups * Format::data_bytes, all.scales + entries * Format::scale_bytes,
                      all.extra + entries * Format::extra_bytes};
  return tile_after<Format>(begin, first);
}

}  // namespace llmc
