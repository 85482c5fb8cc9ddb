// Linear layers: y = W x for the rows of a step, with what comes before and after fused in by functors.
//
// Three variants give the same bits: one row (the weight is streamed once), a few rows ("flat": weights are unpacked in
// registers for several rows) and many rows (weights are unpacked to panels). Each thread owns a contiguous range of
// units.
#pragma once

#include <cstddef>
#include <numeric>

#include "llmc/linear_rows.h"
#include "llmc/threads.h"

namespace llmc {

/// Rows from which the flat and the many-rows variant are used.
struct Crossover {
  int flat = 2, gemm = 128;
};

/// Up to so many rows each thread prepares the activations for itself: cheaper than to share them at a barrier.
inline constexpr int kPrivateRows = 2;

constexpr size_t round_to_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

/// What a thread takes at a time: units until its panels are full, and rows until their outputs take half a megabyte.
template <int TILES>
struct Chunk {
  static constexpr int units = kPanelTiles / std::gcd(kPanelTiles, TILES);
  static constexpr int tiles = units * TILES;
  static constexpr int width = tiles * kTileRows;
  static constexpr int rows = std::min(510, 8192 / tiles / 6 * 6);
};

/// Bytes that the activations of one row take in `shared`.
template <class Format, int K>
constexpr size_t shared_bytes() {
  return group_count(K) * sizeof(Group<Format>);
}

/// Bytes of `team.scratch` that `linear` uses.
template <class Format, int K, int TILES>
constexpr size_t scratch_bytes() {
  const size_t inputs = group_count(K) * kGroupInputs * sizeof(float);
  return inputs + round_to_lines(kPrivateRows * shared_bytes<Format, K>()) +
         Chunk<TILES>::rows * Chunk<TILES>::width * sizeof(float) +
         kPanelTiles * kPanelGroups * sizeof(PanelGroup<Panel::kMins>);
}

/// Packs the inputs of row `t`. `x` is scratch for them in floats.
template <class Format, int K, class Input>
inline void pack_row(const Activations<Format>& to, int64_t t, float* x, Input& in) {
  in(t, x);
  for (int k = K; k < to.count * kGroupInputs; ++k) x[k] = 0;
  for (int first = 0; first < to.count; first += to.block) {
    Group<Format>* group = to.at(t, first);
    for (int g = first; g < first + to.stride(first); ++g) pack_group<Format>(x + g * kGroupInputs, *group++);
  }
}

/// Computes out(t, unit) for all rows and units. K: inputs; TILES: tiles in a unit, 1..8; `units`: how many there are.
/// in(t, x) writes the K inputs of row t, tile_of(unit, j) is the number of the j-th tile of the unit in the weight,
/// and out(t, unit, y) takes the TILES * 16 outputs, 64-byte aligned. `shared` has room for rows * shared_bytes<Format,
/// K>().
template <class Format, int K, int TILES, class Input, class TileOf, class Output>
void linear(Team& team, int64_t rows, int units, Weights weights, Crossover crossover, std::byte* shared, Input in,
            TileOf tile_of, Output out) {
  constexpr int kGroups = group_count(K);
  constexpr size_t kInputs = kGroups * kGroupInputs * sizeof(float);
  constexpr size_t kPrivate = round_to_lines(kPrivateRows * shared_bytes<Format, K>());
  using Part = Chunk<TILES>;
  auto* inputs = reinterpret_cast<float*>(team.scratch);
  auto* y = reinterpret_cast<float*>(team.scratch + kInputs + kPrivate);

  const bool many = rows >= crossover.gemm;
  const auto share = [&](int64_t n, int tid) { return n * tid / team.n; };
  const auto compute = [&](const Activations<Format>& x, int first_unit, int last_unit, int64_t first_row,
                           int64_t last_row) {
    for (int unit = first_unit; unit < last_unit && first_row < last_row; unit += Part::units) {
      const int count = std::min(Part::units, last_unit - unit);
      int tiles[Part::tiles + kPanelTiles];
      for (int i = 0; i < count * TILES + kPanelTiles; ++i)
        tiles[i] = tile_of(std::min(unit + i / TILES, last_unit - 1), i % TILES);
      const TileList list{weights, tiles, count * TILES};
      for (int64_t t = first_row; t < last_row; t += Part::rows) {
        const int n = static_cast<int>(std::min<int64_t>(Part::rows, last_row - t));
        if constexpr (Format::quantized) {
          auto* panel = reinterpret_cast<PanelGroup<kPanel<Format>>*>(y + Part::rows * Part::width);
          if (many) linear_by_panels<Format>(list, x, t, n, y, Part::width, panel);
        }
        if (!Format::quantized || !many)
          linear_direct<Format>(list, x, t, n, rows < crossover.flat ? 1 : n, y, Part::width);
        for (int r = 0; r < n; ++r)
          for (int u = 0; u < count; ++u) out(t + r, unit + u, y + r * Part::width + u * TILES * kTileRows);
      }
    }
  };

  const bool alone = rows <= kPrivateRows;
  const Activations<Format> x{reinterpret_cast<Group<Format>*>(alone ? team.scratch + kInputs : shared), rows, kGroups,
                              many ? kSharedGroups<Format> : kGroups};
  if (const int unit = share(units, team.tid); unit < units)
    fetch_first<Format>(tile_at<Format>(weights, tile_of(unit, 0), kGroups));
  const int64_t packed = alone ? rows : share(rows, team.tid + 1);
  for (int64_t t = alone ? 0 : share(rows, team.tid); t < packed; ++t) pack_row<Format, K>(x, t, inputs, in);
  if (!alone) team.barrier();
  if (!many) {
    compute(x, share(units, team.tid), share(units, team.tid + 1), 0, rows);
  } else {  // what whole units do not divide evenly is divided by rows
    const int whole = units / team.n;
    compute(x, whole * team.tid, whole * (team.tid + 1), 0, rows);
    compute(x, whole * team.n, units, share(rows, team.tid), share(rows, team.tid + 1));
  }
}

}  // namespace llmc
