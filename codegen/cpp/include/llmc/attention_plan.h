// How the work of an attention is divided over a team: tiles of queries in a fixed order, cut where each thread's share
// of the cost ends. A cut inside a tile, between two splits of its keys, leaves partial results to merge at a barrier.
#pragma once

#include "llmc/attention_tile.h"
#include "llmc/threads.h"

namespace llmc {

/// A tile and the threads that compute it. Splits are numbered by position: split s holds keys [256 s, 256 (s + 1)).
struct TileWork {
  TileRange tile;
  int64_t begin, end;  // splits with visible keys
  int64_t cost;        // of all tiles before this one
  int64_t slot;        // of its first partial result, in rows
};

template <class Shape, class Mask>
class AttentionPlan {
 public:
  /// capacity: rows that there is room for between the threads.
  AttentionPlan(const Step& step, const Mask& mask, int threads, int64_t capacity)
      : step_(step), mask_(mask), threads_(threads) {
    for_tiles([&](const TileRange& tile) { total_ += cost_of(tile); });
    if (threads_ > 1 && !balanced()) {
      by_splits_ = true;
      int64_t slots = 0;
      for_work([&](const TileWork& work) { slots = work.slot + slots_of(work); });
      by_splits_ = slots <= capacity;
      shared_ = by_splits_ && slots > 0;
    }
  }

  /// Whether any tile is computed by more than one thread.
  bool shared() const { return shared_; }

  /// Calls visit(TileWork) for all tiles, in order.
  template <class Visit>
  void for_work(Visit visit) const {
    TileWork work{};
    for_tiles([&](const TileRange& tile) {
      work.tile = tile;
      work.begin = tile.key_begin / kSplitKeys;
      work.end = tile.key_begin < tile.key_end ? (tile.key_end + kSplitKeys - 1) / kSplitKeys : work.begin;
      visit(static_cast<const TileWork&>(work));
      work.slot += slots_of(work);
      work.cost += cost_of(tile);
    });
  }

  /// The thread that computes split `split` of a tile.
  int owner(const TileWork& work, int64_t split) const {
    if (!by_splits_ || work.begin == work.end) return owner_of(work.cost, cost_of(work.tile));
    const TileRange& tile = work.tile;
    const auto before = [&](int64_t key) {
      return blocks_between(tile.key_begin, std::min(key, tile.key_end)) * block_cost(tile);
    };
    const int64_t start = split == work.begin ? 0 : before(split * kSplitKeys);
    return owner_of(work.cost + start, before((split + 1) * kSplitKeys) - start);
  }

  int first_owner(const TileWork& work) const { return owner(work, work.begin); }
  int last_owner(const TileWork& work) const { return owner(work, std::max(work.begin, work.end - 1)); }

  /// The first split that the tile's first owner leaves to others.
  int64_t first_left(const TileWork& work) const {
    int64_t split = work.begin;
    while (split < work.end && owner(work, split) == first_owner(work)) ++split;
    return split;
  }

 private:
  static constexpr int64_t kTileCost = 8;  // of a tile before its first block

  template <class Visit>
  void for_tiles(Visit visit) const {
    for (int64_t sequence = 0; sequence < step_.B; ++sequence) {
      const int64_t end = step_.starts[sequence + 1];
      for (int head = 0; head < Shape::HK; ++head) {
        for (int64_t token = step_.starts[sequence]; token < end; token += Shape::tokens) {
          const int64_t tokens = std::min<int64_t>(Shape::tokens, end - token);
          TileRange tile{sequence, token, tokens, step_.lengths[sequence], 0, head};
          for (int64_t t = token; t < token + tokens; ++t) {
            tile.key_begin = std::min(tile.key_begin, mask_.first(step_.positions[t]));
            const int64_t last = std::min(mask_.last(step_.positions[t]), step_.lengths[sequence] - 1);
            tile.key_end = std::max(tile.key_end, last + 1);
          }
          tile.key_begin = std::max<int64_t>(tile.key_begin, 0);
          visit(static_cast<const TileRange&>(tile));
        }
      }
    }
  }

  static int64_t blocks_between(int64_t begin, int64_t end) {
    return std::max<int64_t>((end + kBlockKeys - 1) / kBlockKeys - begin / kBlockKeys, 0);
  }
  // A block costs its reading and the work of each row.
  static int64_t block_cost(const TileRange& tile) { return 8 + tile.tokens * Shape::group; }
  static int64_t cost_of(const TileRange& tile) {
    return kTileCost + blocks_between(tile.key_begin, tile.key_end) * block_cost(tile);
  }

  int owner_of(int64_t start, int64_t cost) const {
    return static_cast<int>(std::min<int64_t>((2 * start + cost) * threads_ / (2 * total_), threads_ - 1));
  }

  // Whether whole tiles divide well enough: what the slowest thread has too much is read in less time than a barrier
  // takes, or is little beside the rest.
  bool balanced() const {
    using Type = typename Stored<typename Shape::E>::type;
    constexpr int64_t kBlockBytes = kBlockKeys * (Shape::D + Shape::DV) * sizeof(Type);
    constexpr int64_t kBarrierBytes = 32768;
    int64_t load = 0, most = 0, start = 0;
    int last = 0;
    for_tiles([&](const TileRange& tile) {
      const int64_t cost = cost_of(tile);
      const int owner = owner_of(start, cost);
      load = owner == last ? load + cost : cost;
      last = owner;
      most = std::max(most, load);
      start += cost;
    });
    const int64_t excess = most - total_ / threads_;
    return excess * 16 <= total_ / threads_ || excess * kBlockBytes <= kBarrierBytes * (8 + Shape::group);
  }

  int64_t slots_of(const TileWork& work) const {
    if (!by_splits_ || first_owner(work) == last_owner(work)) return 0;
    return (1 + work.end - first_left(work)) * work.tile.tokens * Shape::group;
  }

  const Step& step_;
  const Mask& mask_;
  const int threads_;
  int64_t total_ = 0;
  bool by_splits_ = false, shared_ = false;
};

}  // namespace llmc
