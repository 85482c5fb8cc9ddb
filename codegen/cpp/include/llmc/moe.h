// Mixtures of experts: each token's K experts, and their weighted sum.
//
// Slots (a token and one of its experts) are sorted by expert; an expert's two products are then `linear`s over its rows,
// by the whole team. Slots do not meet before the sum, whose order is that of the token's slots: a token's result does
// not depend on what other tokens chose.
#pragma once

#include <cstring>

#include "llmc/linear.h"
#include "llmc/simd.h"
#include "llmc/threads.h"

namespace llmc {

/// The shape of a mixture: E experts, K of them a token, of width F, over D elements. Act: F32x16 -> F32x16.
template <class Up_, class Down_, int E_, int K_, int D_, int F_, bool GATED_>
struct Mixture {
  using Up = Up_;
  using Down = Down_;
  static constexpr int E = E_, K = K_, D = D_, F = F_;
  static constexpr bool gated = GATED_;
  static constexpr int up_rows = gated ? 2 * F : F;
  static constexpr int up_tiles = (up_rows + kTileRows - 1) / kTileRows, down_tiles = (D + kTileRows - 1) / kTileRows;

  /// Whether gate and up part of an element are in one unit of the product, so that they meet in registers. They are
  /// not when the up part begins within a tile: then the next product reads both.
  static constexpr bool fused = !gated || F % kTileRows == 0;
  static constexpr int widest(int tiles) { return tiles % 4 == 0 ? 4 : tiles % 2 == 0 ? 2 : 1; }
  static constexpr int gate_unit = F / kTileRows % 2 == 0 ? 2 : 1;  // tiles of each of the two parts
  static constexpr int up_unit = gated && fused ? 2 * gate_unit : widest(up_tiles);
  static constexpr int down_unit = widest(down_tiles);

  // Bytes of `shared`: once, then for each token.
  static constexpr size_t starts = round_to_lines((E + 1) * sizeof(int));
  static constexpr size_t slots = round_to_lines(K * sizeof(int));
  static constexpr size_t packed = K * round_to_lines(std::max(shared_bytes<Up, D>(), shared_bytes<Down, F>()));
  static constexpr size_t hidden_width = (fused ? F : up_rows) + 15 & ~size_t(15);
  static constexpr size_t result_width = D + 15 & ~size_t(15);
  static constexpr size_t hidden = K * hidden_width * sizeof(float), results = K * result_width * sizeof(float);
};

/// Bytes of `shared` for each token of a step.
template <class Shape>
constexpr size_t moe_shared_bytes() {
  return Shape::starts + Shape::slots + Shape::packed + Shape::hidden + Shape::results;
}

/// Bytes of `team.scratch` that `moe` uses.
template <class Shape>
constexpr size_t moe_scratch_bytes() {
  return std::max(scratch_bytes<typename Shape::Up, Shape::D, Shape::up_unit>(),
                  scratch_bytes<typename Shape::Down, Shape::F, Shape::down_unit>());
}

/// Sorts slots by expert, those of one expert in ascending order: expert e has order[starts[e]] to order[starts[e + 1]].
template <int E>
inline void sort_slots(const int64_t* ids, int64_t count, int* starts, int* order) {
  std::memset(starts, 0, (E + 1) * sizeof(int));
  for (int64_t s = 0; s < count; ++s) ++starts[ids[s] + 1];
  for (int e = 0; e < E; ++e) starts[e + 1] += starts[e];
  for (int64_t s = 0; s < count; ++s) order[starts[ids[s]]++] = int(s);
  for (int e = E; e > 0; --e) starts[e] = starts[e - 1];  // each had become the start of the next
  starts[0] = 0;
}

/// What gate and up part are taken to before the activation.
struct Limits {
  float limit;      // above 0: gate to at most this, the up part to between it and its negative
  float up_offset;  // added to the up part
};

template <class Act>
inline F32x16 gated(F32x16 gate, F32x16 up, const Limits& limits, Act act) {
  if (limits.limit > 0) {
    const F32x16 high = F32x16::broadcast(limits.limit);
    gate = min(high, gate);
    up = max(-high, min(high, up));
  }
  return act(gate) * (up + F32x16::broadcast(limits.up_offset));
}

/// The weights of all experts: expert e begins at tile e * ceil(rows / 16). Biases are [E, rows], or null.
template <class UpBias, class DownBias>
struct ExpertWeights {
  Weights up, down;
  const UpBias* up_bias;
  const DownBias* down_bias;
};

/// y[t] = sum over k of gates[t, k] * expert ids[t, k] of x[t]. x, y: [rows, D]; ids, gates: [rows, K]. An expert is
/// down(act(up(x))), or down(act(gate) * up) with the rows of the gate before those of the up part.
/// `shared` has rows * moe_shared_bytes<Shape>() bytes. The caller puts a barrier after it.
template <class Shape, class UpBias, class DownBias, class Act>
void moe(Team& team, int64_t rows, const ExpertWeights<UpBias, DownBias>& weights, Crossover up_crossover,
         Crossover down_crossover, std::byte* shared, const float* x, const int64_t* ids, const float* gates, Limits limits,
         Act act, float* y) {
  constexpr int K = Shape::K, D = Shape::D, F = Shape::F;
  constexpr size_t kHidden = Shape::hidden_width, kResult = Shape::result_width;
  constexpr size_t kPacked = Shape::packed / K;
  auto* starts = reinterpret_cast<int*>(shared);
  auto* order = reinterpret_cast<int*>(shared + Shape::starts);
  std::byte* packed = shared + Shape::starts + rows * Shape::slots;
  auto* hidden = reinterpret_cast<float*>(packed + rows * Shape::packed);
  float* results = hidden + size_t(rows) * K * kHidden;

  if (team.tid == 0) sort_slots<Shape::E>(ids, rows * K, starts, order);
  team.barrier();

  for (int e = 0; e < Shape::E; ++e) {
    const int* slots = order + starts[e];
    const int count = starts[e + 1] - starts[e];
    if (count == 0) continue;
    const UpBias* bias = weights.up_bias == nullptr ? nullptr : weights.up_bias + int64_t(e) * Shape::up_rows;
    constexpr int kTiles = Shape::up_unit, kHalf = Shape::gate_unit;
    const auto in = [&](int64_t r, float* to) { std::memcpy(to, x + slots[r] / K * D, D * sizeof(float)); };
    const auto tile_of = [e](int unit, int j) {
      const int first = e * Shape::up_tiles;
      if constexpr (Shape::gated && Shape::fused) {
        return first + unit * kHalf + (j < kHalf ? j : Shape::up_tiles / 2 - kHalf + j);
      } else {
        return first + unit * kTiles + j;
      }
    };
    const auto out = [&](int64_t r, int unit, const float* from) {
      const auto value = [&](int row, const float* at) {
        const F32x16 v = F32x16::load(at);
        const int left = Shape::up_rows - row;
        return bias == nullptr || left <= 0 ? v : v + (left < 16 ? load_16(bias + row, left) : load_16(bias + row));
      };
      if constexpr (Shape::gated && Shape::fused) {
        for (int j = 0; j < kHalf; ++j) {
          const int row = (unit * kHalf + j) * 16;
          const F32x16 up = value(F + row, from + (kHalf + j) * 16);
          gated(value(row, from + j * 16), up, limits, act).store(hidden + slots[r] * kHidden + row);
        }
      } else {
        for (int j = 0; j < kTiles; ++j) {
          const int row = (unit * kTiles + j) * 16;
          const F32x16 v = value(row, from + j * 16);
          (Shape::gated ? v : act(v)).store(hidden + slots[r] * kHidden + row);
        }
      }
    };
    linear<typename Shape::Up, D, kTiles>(team, count, Shape::up_tiles / kTiles, weights.up, up_crossover,
                                          packed + starts[e] * kPacked, in, tile_of, out);
  }
  team.barrier();

  for (int e = 0; e < Shape::E; ++e) {
    const int* slots = order + starts[e];
    const int count = starts[e + 1] - starts[e];
    if (count == 0) continue;
    const DownBias* bias = weights.down_bias == nullptr ? nullptr : weights.down_bias + int64_t(e) * D;
    constexpr int kTiles = Shape::down_unit;
    const auto in = [&](int64_t r, float* to) {
      const float* from = hidden + slots[r] * kHidden;
      if constexpr (Shape::fused) {
        std::memcpy(to, from, F * sizeof(float));
      } else {
        for (int i = 0; i < F; i += 16) {
          const int left = std::min(F - i, 16);
          gated(F32x16::load_n(from + i, left), F32x16::load_n(from + F + i, left), limits, act).store_n(to + i, left);
        }
      }
    };
    const auto tile_of = [e](int unit, int j) { return e * Shape::down_tiles + unit * kTiles + j; };
    const auto out = [&](int64_t r, int unit, const float* from) {
      for (int j = 0; j < kTiles; ++j) {
        const int row = (unit * kTiles + j) * 16, left = D - row;
        F32x16 v = F32x16::load(from + j * 16);
        if (bias != nullptr) v = v + (left < 16 ? load_16(bias + row, left) : load_16(bias + row));
        v.store(results + slots[r] * kResult + row);
      }
    };
    linear<typename Shape::Down, F, kTiles>(team, count, Shape::down_tiles / kTiles, weights.down, down_crossover,
                                            packed + starts[e] * kPacked, in, tile_of, out);
  }
  team.barrier();

  // Split by pieces of 16 columns, so that one token keeps the team busy too.
  const int64_t pieces = rows * Shape::down_tiles;
  for (int64_t p = pieces * team.tid / team.n; p < pieces * (team.tid + 1) / team.n; ++p) {
    const int64_t t = p / Shape::down_tiles;
    const int column = int(p % Shape::down_tiles) * 16;
    F32x16 sum = F32x16::zero();
    for (int k = 0; k < K; ++k)
      sum = fma(F32x16::load(results + (t * K + k) * kResult + column), F32x16::broadcast(gates[t * K + k]), sum);
    store_strided(y + t * D + column, 1, std::min(D - column, 16), sum);
  }
}

}  // namespace llmc
