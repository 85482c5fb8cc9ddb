// Single rows of a matrix, as embeddings read them: from the tiles of a packed weight, or from a plain table.
#pragma once

#include <type_traits>

#include "llmc/formats.h"
#include "llmc/simd.h"

namespace llmc {

/// An e4m3 number, of which the format has no infinities and one NaN.
inline float from_e4m3(uint8_t byte) {
  const uint32_t bits = uint32_t{byte & 0x80u} << 24 | uint32_t{byte & 0x7fu} << 20;
  return std::bit_cast<float>(bits) * 0x1p120f;
}

/// y = row `row` of a weight with K inputs; y has exactly K floats. The row must exist.
template <class Format, int K>
inline void gather_row(const Weights& weights, int64_t row, float* y) {
  const int lane = int(row % kTileRows);
  for (int g = 0; g < group_count(K); ++g) {
    const Tile tile = tile_at<Format>(weights, row / kTileRows, group_count(K), g);
    const int count = K - g * kGroupInputs < kGroupInputs ? K - g * kGroupInputs : kGroupInputs;
    float* out = y + g * kGroupInputs;
    if constexpr (std::is_same_v<Format, FP8>) {
      const float scale = reinterpret_cast<const float*>(tile.scales)[lane];
      for (int i = 0; i < count; ++i) out[i] = scale * from_e4m3(tile.data[(i / 4 * kTileRows + lane) * 4 + i % 4]);
    } else if constexpr (!Format::quantized) {
      constexpr int pack = std::is_same_v<Format, BF16> ? 2 : 1;  // inputs of a row that lie side by side
      using Stored = std::conditional_t<std::is_same_v<Format, F32>, float, std::conditional_t<pack == 2, bf16, f16>>;
      const auto* data = reinterpret_cast<const Stored*>(tile.data);
      for (int i = 0; i < count; ++i) {
        const Stored element = data[(i / pack * kTileRows + lane) * pack + i % pack];
        if constexpr (std::is_same_v<Format, F32>) out[i] = element;
        else out[i] = to_float(element);
      }
    } else {
      const auto at = [&](const uint8_t* part) { return to_float(reinterpret_cast<const f16*>(part)[lane]); };
      const float scale = at(tile.scales);
      for (int i = 0; i < count; ++i) {
        if constexpr (std::is_same_v<Format, Int8>) {
          out[i] = scale * float(tile.data[(i / 4 * kTileRows + lane) * 4 + i % 4] - 128);
        } else {
          const uint8_t pair = tile.data[(i % 16 / 4 * kTileRows + lane) * 4 + i % 4];
          const int level = i < 16 ? pair & 15 : pair >> 4;
          if constexpr (Format::bias == 32) {
            const uint8_t high = tile.data[256 + (i / 16 * kTileRows + lane) * 4 + i % 4];
            const float own = at(tile.scales + (Format::parts == 2 ? i / 16 * 32 : 0));
            out[i] = own * float((level | (high >> i % 16 / 4 * 2 & 3) << 4) - 32);
          } else if constexpr (Format::zeros) {
            out[i] = scale * 0.125f * float(8 * level - tile.extra[lane]);
          } else {
            out[i] = scale * float(level) + at(tile.extra);
          }
        }
      }
    }
  }
}

/// y = row `row` of a plain table [V, columns] of float, f16 or bf16.
template <class T>
inline void gather_row(const T* table, int64_t row, int64_t columns, float* y) {
  const T* from = table + row * columns;
  int64_t i = 0;
  for (; i + 16 <= columns; i += 16) load_16(from + i).storeu(y + i);
  if (i < columns) load_16(from + i, int(columns - i)).store_n(y + i, int(columns - i));
}

}  // namespace llmc
