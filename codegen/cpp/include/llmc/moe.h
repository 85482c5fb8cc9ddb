// Mixtures of experts: each token's K experts, and their weighted sum.
//
// Slots (a token and one of its experts) are sorted by expert; an expert's two products are then `linear`s over its
// rows, by the whole team. Slots do not meet before the sum, whose order is that of the token's slots: a token's result
// does not depend on what other tokens chose.
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

  /// Whether the gate and the up part of an element are in one unit of the product, so that they meet in registers.
  /// They are not when the up part begins within a tile: then the second product reads both.
  static constexpr bool paired = gated && F % kTileRows == 0;
  static constexpr int widest(int tiles) { return tiles % 4 == 0 ? 4 : tiles % 2 == 0 ? 2 : 1; }
  static constexpr int gate_unit = F / kTileRows % 2 == 0 ? 2 : 1;  // tiles of each of the two parts
  static constexpr int up_unit = paired ? 2 * gate_unit : widest(up_tiles);
  static constexpr int down_unit = widest(down_tiles);

  // Bytes of `shared`: once, then for each token.
  static constexpr size_t starts = round_to_lines((E + 1) * sizeof(int));
  static constexpr size_t slots = round_to_lines(K * sizeof(int));
  static constexpr size_t packed = K * round_to_lines(std::max(shared_bytes<Up, D>(), shared_bytes<Down, F>()));
  static constexpr size_t hidden_width = (paired ? up_tiles / 2 : up_tiles) * kTileRows;  // floats of a slot
  static constexpr size_t result_width = down_tiles * kTileRows;
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

/// Sorts slots by expert, those of one expert in ascending order: expert e has order[starts[e]] to order[starts[e +
/// 1]].
template <int E>
inline void sort_slots(const int64_t* ids, int64_t count, int* starts, int* order) {
  std::memset(starts, 0, (E + 1) * sizeof(int));
  for (int64_t s = 0; s < count; ++s) ++starts[ids[s] + 1];
  for (int e = 0; e < E; ++e) starts[e + 1] += starts[e];
  for (int64_t s = 0; s < count; ++s) order[starts[ids[s]]++] = int(s);
  for (int e = E; e > 0; --e) starts[e] = starts[e - 1];  // each had become the start of the next
  starts[0] = 0;
}

/// The weights of all experts: expert e begins at tile e * ceil(rows / 16). Biases are [E, rows], or null.
template <class UpBias, class DownBias>
struct ExpertWeights {
  Weights up, down;
  const UpBias* up_bias;
  const DownBias* down_bias;
};

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

/// 16 outputs of a product from row `row` of `rows` on, with the bias of the expert (null for none) added.
template <class Bias>
inline F32x16 with_bias(const float* y, const Bias* bias, int row, int rows) {
  const F32x16 v = F32x16::load(y);
  if (bias == nullptr || row >= rows) return v;
  return v + load_strided(bias + row, 1, std::min(rows - row, 16));
}

/// Where the parts of one call are in `shared`.
template <class Shape>
struct Slots {
  int64_t rows;
  int *starts, *order;     // slots by expert
  std::byte* packed;       // activations of one slot after another, as the products take them
  float *hidden, *results;  // by slot: what the second product reads, and what it gives

  Slots(std::byte* shared, int64_t rows_)
      : rows(rows_),
        starts(reinterpret_cast<int*>(shared)),
        order(reinterpret_cast<int*>(shared + Shape::starts)),
        packed(shared + Shape::starts + rows * Shape::slots),
        hidden(reinterpret_cast<float*>(packed + rows * Shape::packed)),
        results(reinterpret_cast<float*>(packed + rows * (Shape::packed + Shape::hidden))) {}

  /// Calls f(expert, its slots, how many, where their activations go) for every expert that has slots.
  template <class F>
  void each_expert(F f) const {
    for (int e = 0; e < Shape::E; ++e) {
      const int count = starts[e + 1] - starts[e];
      if (count > 0) f(e, order + starts[e], count, packed + starts[e] * (Shape::packed / Shape::K));
    }
  }
};

/// The first product and, where its parts meet in registers, the activation.
template <class Shape, class UpBias, class Act>
inline void expert_up(Team& team, const Slots<Shape>& all, Weights weights, const UpBias* biases, Crossover crossover,
                      const float* x, Limits limits, Act act) {
  constexpr int kTiles = Shape::up_unit, kHalf = Shape::gate_unit, kRows = Shape::up_rows;
  all.each_expert([&](int e, const int* slots, int count, std::byte* packed) {
    const UpBias* bias = biases == nullptr ? nullptr : biases + int64_t(e) * kRows;
    const auto in = [&](int64_t r, float* to) {
      std::memcpy(to, x + slots[r] / Shape::K * Shape::D, Shape::D * sizeof(float));
    };
    const auto tile_of = [e](int unit, int j) {
      constexpr int half = Shape::gate_unit;
      const int first = e * Shape::up_tiles;
      if constexpr (Shape::paired) return first + unit * half + (j < half ? j : Shape::up_tiles / 2 - half + j);
      return first + unit * Shape::up_unit + j;
    };
    const auto out = [&](int64_t r, int unit, const float* y) {
      float* to = all.hidden + slots[r] * Shape::hidden_width;
      for (int j = 0; j < (Shape::paired ? kHalf : kTiles); ++j) {
        const int row = (unit * (Shape::paired ? kHalf : kTiles) + j) * kTileRows;
        F32x16 v = with_bias(y + j * kTileRows, bias, row, kRows);
        if constexpr (Shape::paired) {
          v = gated(v, with_bias(y + (kHalf + j) * kTileRows, bias, Shape::F + row, kRows), limits, act);
        } else if constexpr (!Shape::gated) {
          v = act(v);
        }
        v.store(to + row);
      }
    };
    linear<typename Shape::Up, Shape::D, kTiles>(team, count, Shape::up_tiles / kTiles, weights, crossover, packed, in,
                                                 tile_of, out);
  });
}

/// The second product.
template <class Shape, class DownBias, class Act>
inline void expert_down(Team& team, const Slots<Shape>& all, Weights weights, const DownBias* biases,
                        Crossover crossover, Limits limits, Act act) {
  constexpr int kTiles = Shape::down_unit, kInputs = Shape::F;
  all.each_expert([&](int e, const int* slots, int count, std::byte* packed) {
    const DownBias* bias = biases == nullptr ? nullptr : biases + int64_t(e) * Shape::D;
    const auto in = [&](int64_t r, float* to) {
      const float* from = all.hidden + slots[r] * Shape::hidden_width;
      if constexpr (!Shape::gated || Shape::paired) {
        std::memcpy(to, from, kInputs * sizeof(float));
      } else {
        for (int i = 0; i < kInputs; i += 16) {
          const int n = std::min(kInputs - i, 16);
          gated(F32x16::load_n(from + i, n), F32x16::load_n(from + kInputs + i, n), limits, act).store_n(to + i, n);
        }
      }
    };
    const auto tile_of = [e](int unit, int j) { return e * Shape::down_tiles + unit * Shape::down_unit + j; };
    const auto out = [&](int64_t r, int unit, const float* y) {
      for (int j = 0; j < kTiles; ++j) {
        const int row = (unit * kTiles + j) * kTileRows;
        with_bias(y + j * kTileRows, bias, row, Shape::D).store(all.results + slots[r] * Shape::result_width + row);
      }
    };
    linear<typename Shape::Down, kInputs, kTiles>(team, count, Shape::down_tiles / kTiles, weights, crossover, packed,
                                                  in, tile_of, out);
  });
}

/// y[t] = sum over k of gates[t, k] * expert ids[t, k] of x[t]. x, y: [rows, D]; ids, gates: [rows, K]. An expert is
/// down(act(up(x))), or down(act(gate) * up) with the rows of the gate before those of the up part.
/// `shared` has rows * moe_shared_bytes<Shape>() bytes. The caller puts a barrier after it.
template <class Shape, class UpBias, class DownBias, class Act>
void moe(Team& team, int64_t rows, const ExpertWeights<UpBias, DownBias>& weights, Crossover up_crossover,
         Crossover down_crossover, std::byte* shared, const float* x, const int64_t* ids, const float* gates,
         Limits limits, Act act, float* y) {
  const Slots<Shape> all(shared, rows);
  if (team.tid == 0) sort_slots<Shape::E>(ids, rows * Shape::K, all.starts, all.order);
  team.barrier();
  expert_up(team, all, weights.up, weights.up_bias, up_crossover, x, limits, act);
  team.barrier();
  expert_down(team, all, weights.down, weights.down_bias, down_crossover, limits, act);
  team.barrier();

  // Split by pieces of 16 columns, so that one token keeps the team busy too.
  const int64_t pieces = rows * Shape::down_tiles;
  for (int64_t p = pieces * team.tid / team.n; p < pieces * (team.tid + 1) / team.n; ++p) {
    const int64_t t = p / Shape::down_tiles;
    const int column = int(p % Shape::down_tiles) * 16;
    F32x16 sum = F32x16::zero();
    for (int64_t s = t * Shape::K; s < (t + 1) * Shape::K; ++s)
      sum = fma(F32x16::load(all.results + s * Shape::result_width + column), F32x16::broadcast(gates[s]), sum);
    store_strided(y + t * Shape::D + column, 1, std::min(Shape::D - column, 16), sum);
  }
}

}  // namespace llmc
