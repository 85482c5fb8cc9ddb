// Attention over the paged cache, the masks being formulas.
#pragma once

#include "llmc/attention_plan.h"

namespace llmc {

/// Rows of partial results that threads can leave to each other. When more would be needed, threads take whole tiles.
inline constexpr int64_t kSharedRows = 2048;

/// Bytes of `team.scratch` that `attention` uses.
template <class E, int H, int HK, int D, int DV>
constexpr size_t attention_scratch_bytes() {
  return sizeof(TileMemory<AttentionShape<E, H, HK, D, DV>>);
}

/// Bytes that `attention` uses in `shared`, whatever the step.
template <class E, int H, int HK, int D, int DV>
constexpr size_t attention_shared_bytes() {
  return kSharedRows * sizeof(RowState<AttentionShape<E, H, HK, D, DV>>);
}

/// softmax(mask(scale * q k)) v of every token and query head of a step, over what the cache holds of its sequence.
/// q(t, head) gives D floats and out(t, head, y) takes DV. sinks: [H] or null; softcap: 0 for none. `team.scratch` and
/// `shared` begin at multiples of 64. The keys and values of the step must be in the cache.
///
/// A Mask has, for query and key positions q and k and query head h:
///   bool visible(q, k, h) and float bias(q, k, h), where the bias is 0 for none;
///   int64_t first(q), last(q): no key before or after these is visible to q, in any head;
///   bool all(q_low, q_high, k_low, k_high): true only if, bounds included, all is visible without bias in all heads.
template <class E, int H, int HK, int D, int DV, class Mask, class Query, class Output>
void attention(Team& team, const Step& step, const Cache<E>& cache, const float* sinks, float scale, float softcap,
               const Mask& mask, Query query, std::byte* shared, Output out) {
  using Shape = AttentionShape<E, H, HK, D, DV>;
  auto& memory = *reinterpret_cast<TileMemory<Shape>*>(team.scratch);
  auto* slots = reinterpret_cast<RowState<Shape>*>(shared);
  const AttentionPlan<Shape, Mask> plan(step, mask, team.n, kSharedRows);
  TileAttention<Shape, Mask> rows(memory, step, cache, {scale, softcap}, mask);
  const auto finish = [&](const TileWork& work, int row, RowState<Shape>& state) {
    const int head = work.tile.key_head * Shape::group + row % Shape::group;
    state.finish(sinks == nullptr ? nullptr : sinks + head);
    out(work.tile.token + row / Shape::group, head, static_cast<const float*>(state.acc));
  };

  plan.for_work([&](const TileWork& work) {
    const int first = plan.first_owner(work), last = plan.last_owner(work);
    if (team.tid < first || team.tid > last) return;
    rows.begin(work.tile, query);
    const int64_t left = first == last ? work.end : plan.first_left(work);
    if (team.tid == first) {
      for (int64_t split = work.begin; split < left; ++split) {
        rows.compute(split);
        rows.merge();
      }
      for (int r = 0; r < rows.rows(); ++r) {
        if (first == last) {
          finish(work, r, memory.merged[r]);
        } else {
          slots[work.slot + r] = memory.merged[r];
        }
      }
      return;
    }
    for (int64_t split = left; split < work.end; ++split) {
      if (plan.owner(work, split) != team.tid) continue;
      rows.compute(split);
      rows.store(&slots[work.slot + (1 + split - left) * rows.rows()]);
    }
  });
  if (!plan.shared()) return;

  team.barrier();
  int64_t turn = 0;  // rows are merged by the threads in turn
  plan.for_work([&](const TileWork& work) {
    if (plan.first_owner(work) == plan.last_owner(work)) return;
    const int count = static_cast<int>(work.tile.tokens) * Shape::group;
    const int64_t splits = work.end - plan.first_left(work);
    for (int r = 0; r < count; ++r) {
      if (turn++ % team.n != team.tid) continue;
      RowState<Shape>& state = slots[work.slot + r];
      for (int64_t i = 1; i <= splits; ++i) {
        const RowState<Shape>& other = slots[work.slot + i * count + r];
        state.add(other.acc, other.top, other.sum);
      }
      finish(work, r, state);
    }
  });
}

}  // namespace llmc
