// Attention of one tile: the query rows of a few tokens that share a key head, against blocks of 64 keys.
//
// Every row follows one order of float operations, whatever tile it is in: keys in blocks aligned to positions, an
// online softmax over the blocks of a split of 256 positions, and splits merged in ascending order. A hidden key adds
// exactly nothing, so it makes no difference which blocks are passed over, nor which thread takes which split.
#pragma once

#include "llmc/attention_softmax.h"
#include "llmc/attention_strip.h"
#include "llmc/program.h"

namespace llmc {

inline constexpr int kSplitKeys = 256;  // keys whose softmax can be a work item of its own
inline constexpr int kTileQueries = 24;  // rows of a tile, where its tokens do not need more

constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

/// An attention's sizes: H query heads over HK key heads, keys of D and values of DV elements.
template <class Element, int H_, int HK_, int D_, int DV_>
struct AttentionShape {
  using E = Element;
  static constexpr int H = H_, HK = HK_, D = D_, DV = DV_;
  static constexpr int group = H / HK;                                   // query heads of a key head
  static constexpr int tokens = std::max(1, kTileQueries / group);       // of a tile
  static constexpr int strips = (group + kStripRows - 1) / kStripRows;   // of one token
  static constexpr int few = (group + strips - 1) / strips;              // rows of each of them
  static constexpr int rows = std::max(round_up(tokens * group, kStripRows), round_up(tokens * group, few));
  static constexpr int width = round_up(DV, 16);  // of an output row
};

/// The softmax of a row over some splits: its output is acc / sum. `top` is in units of log 2.
template <class Shape>
struct RowState {
  alignas(64) float acc[Shape::width];
  float top, sum;

  void clear() {
    for (float& x : acc) x = 0;
    top = softmax::kLowest;
    sum = 0;
  }
  /// Adds a later split.
  void add(const float* other, float other_top, float other_sum) {
    const float next = other_top > top ? other_top : top;
    const float keep = softmax::power_of_two(top - next), scale = softmax::power_of_two(other_top - next);
    for (int i = 0; i < Shape::width; ++i) acc[i] = acc[i] * keep + other[i] * scale;
    sum = sum * keep + other_sum * scale;
    top = next;
  }
  /// Turns acc into the output. sink: null, or the score of a key without a value.
  void finish(const float* sink) {
    if (sink != nullptr) {
      const float score = *sink * softmax::kLog2E, next = score > top ? score : top;
      const float keep = softmax::power_of_two(top - next);
      for (float& x : acc) x *= keep;
      sum = sum * keep + softmax::power_of_two(score - next);
    }
    const float scale = sum == 0 ? 0 : 1 / sum;  // a row that sees nothing gives zeros
    for (float& x : acc) x *= scale;
  }
};

/// The tokens and keys of a tile.
struct TileRange {
  int64_t sequence;
  int64_t token, tokens;          // first token in the step, and how many
  int64_t key_begin, key_end;     // every visible key is in [key_begin, key_end)
  int key_head;
};

/// A thread's private memory for a tile.
template <class Shape>
struct TileMemory {
  using E = typename Shape::E;
  alignas(64) Operand<E> q[Shape::rows][round_up(Shape::D, 16)];
  alignas(64) float scores[kStripRows][kBlockKeys];
  alignas(64) Operand<E> weights[kStripRows][kBlockKeys];
  alignas(64) float q_scale[Shape::rows];  // of integers
  alignas(64) float acc[Shape::rows][Shape::width];
  alignas(64) float sums[Shape::rows][16];  // of weights: a lane takes every 16th key
  alignas(64) float top[round_up(Shape::rows, 16)];
  int64_t position[Shape::rows];
  int head[Shape::rows];
  RowState<Shape> merged[Shape::rows];
};

/// Computes tiles on one thread.
template <class Shape, class Mask>
class TileAttention {
  using E = typename Shape::E;
  static constexpr bool kIntegers = std::is_same_v<E, Int8>;
  static_assert(!kIntegers || Shape::D * 127.0 * kQueryLevels < 2147483648.0, "a dot product fits into 32 bits");

 public:
  TileAttention(TileMemory<Shape>& memory, const Step& step, const Cache<E>& cache, softmax::Scale scale,
                const Mask& mask)
      : memory_(memory), step_(step), cache_(cache), scale_(scale), mask_(mask) {}

  /// Takes the queries of a tile; what follows is about it. q(t, head) gives D floats.
  template <class Query>
  void begin(const TileRange& tile, Query& query) {
    tile_ = tile;
    rows_ = static_cast<int>(tile.tokens) * Shape::group;
    const auto cost = [&](int strip) { return (rows_ + strip - 1) / strip * (2 * strip + 3); };
    strip_ = cost(Shape::few) < cost(kStripRows) ? Shape::few : kStripRows;
    for (int r = 0; r < round_up(rows_, strip_); ++r) {
      const int row = std::min(r, rows_ - 1);  // rows that fill up the last strip repeat its last row
      const int64_t token = tile.token + row / Shape::group;
      memory_.position[r] = step_.positions[token];
      memory_.head[r] = tile.key_head * Shape::group + row % Shape::group;
      constexpr int width = round_up(Shape::D, 16);
      const float* q = query(token, memory_.head[r]);
      if constexpr (kIntegers) {
        memory_.q_scale[r] = to_query_levels<Shape::D>(q, memory_.q[r]);
      } else {
        for (int i = 0; i < width; i += 16) to_operands<E>(load_16(q + i, std::min(Shape::D - i, 16)), memory_.q[r] + i);
      }
      memory_.merged[r].clear();
    }
  }

  /// Computes the softmax state of all rows over split `split`.
  void compute(int64_t split) {
    for (int r = 0; r < round_up(rows_, strip_); ++r) {
      for (float& x : memory_.acc[r]) x = 0;
      for (float& x : memory_.sums[r]) x = 0;
      memory_.top[r] = softmax::kLowest;
    }
    const int64_t begin = std::max(split * kSplitKeys, tile_.key_begin / kBlockKeys * kBlockKeys);
    const int64_t end = std::min((split + 1) * kSplitKeys, tile_.key_end);
    // Past the last block comes the next key head, unless this tile has one of a row of tiles over the same keys.
    const int after = tile_.tokens < Shape::tokens ? std::min(tile_.key_head + 1, Shape::HK - 1) : tile_.key_head;
    BlockGroups<E> block = groups_at(begin, tile_.key_head);
    for (int64_t key = begin; key < end; key += kBlockKeys) {
      const bool last = key + kBlockKeys >= tile_.key_end;
      const BlockGroups<E> next =
          groups_at(last ? tile_.key_begin / kBlockKeys * kBlockKeys : key + kBlockKeys, last ? after : tile_.key_head);
      for (int row = 0; row < rows_; row += strip_) {
        if constexpr (Shape::few < kStripRows) {
          if (strip_ == Shape::few) {
            compute_strip<Shape::few>(row, key, block, row == 0 ? &next : nullptr);
            continue;
          }
        }
        compute_strip<kStripRows>(row, key, block, row == 0 ? &next : nullptr);
      }
      block = next;
    }
  }

  /// Merges the split just computed into the state of its rows.
  void merge() {
    for (int r = 0; r < rows_; ++r)
      memory_.merged[r].add(memory_.acc[r], memory_.top[r], reduce_add(F32x16::load(memory_.sums[r])));
  }

  /// Writes the state of its rows over the split just computed.
  void store(RowState<Shape>* to) const {
    for (int r = 0; r < rows_; ++r, ++to) {
      std::copy_n(memory_.acc[r], Shape::width, to->acc);
      to->top = memory_.top[r];
      to->sum = reduce_add(F32x16::load(memory_.sums[r]));
    }
  }

  int rows() const { return rows_; }

 private:
  /// Where the keys and values of a key head lie that the block at position `key` has.
  BlockGroups<E> groups_at(int64_t key, int head) const {
    const int64_t* blocks = step_.blocks + tile_.sequence * step_.M;
    const int64_t length = step_.lengths[tile_.sequence];
    BlockGroups<E> groups{};
    groups.begin = static_cast<int>(std::max<int64_t>(tile_.key_begin - key, 0) / kKeyGroup);
    groups.end = static_cast<int>(std::min<int64_t>((tile_.key_end - key + kKeyGroup - 1) / kKeyGroup, kGroupsInBlock));
    groups.keys = static_cast<int>(std::min<int64_t>(length - key, kBlockKeys));
    int64_t index = (key + groups.begin * kKeyGroup) / cache_.block_size;
    int64_t offset = (key + groups.begin * kKeyGroup) % cache_.block_size;
    for (int g = groups.begin; g < groups.end; ++g) {
      groups.k[g] = cache_.k + group_index<E, Shape::D>(cache_, blocks[index], offset, head);
      groups.v[g] = cache_.v + group_index<E, Shape::DV>(cache_, blocks[index], offset, head);
      if constexpr (kIntegers) {
        const auto scales = [&](const int8_t* cache, int64_t at) { return reinterpret_cast<const bf16*>(cache + at); };
        groups.k_scales[g] = scales(cache_.k, scale_index<Shape::D>(cache_, blocks[index], offset, head));
        groups.v_scales[g] = scales(cache_.v, scale_index<Shape::DV>(cache_, blocks[index], offset, head));
      }
      offset += kKeyGroup;
      if (offset == cache_.block_size) {
        offset = 0;
        ++index;
      }
    }
    for (int g = 0; g < kGroupsInBlock; ++g) {
      const int shown = std::clamp(g, groups.begin, groups.end - 1);
      groups.k[g] = groups.k[shown];
      groups.v[g] = groups.v[shown];
      groups.k_scales[g] = groups.k_scales[shown];
      groups.v_scales[g] = groups.v_scales[shown];
    }
    return groups;
  }

  template <int ROWS>
  void compute_strip(int first, int64_t key, const BlockGroups<E>& block, const BlockGroups<E>* following) {
    TileMemory<Shape>& m = memory_;
    int64_t low = m.position[first], high = low;
    for (int r = 1; r < ROWS; ++r) {
      low = std::min(low, m.position[first + r]);
      high = std::max(high, m.position[first + r]);
    }
    const bool all = block.begin == 0 && block.end == kGroupsInBlock && block.keys == kBlockKeys &&
                     mask_.all(low, high, key, key + kBlockKeys - 1);
    const auto finish = [&](int r, int group, F32x16 product) {
      if constexpr (kIntegers)
        product = product * (F32x16::broadcast(m.q_scale[first + r]) * load_16(block.k_scales[group]));
      return scale_(product);
    };
    dot_keys<E, Shape::D, ROWS>(m.q[first], block, following, finish, m.scores[0]);
    bool higher = false;
    F32x16 top[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      if (!all) apply_mask(m.scores[r], m.position[first + r], m.head[first + r], key, block.keys);
      top[r] = F32x16::load(m.scores[r]);
      for (int j = 1; j < kGroupsInBlock; ++j) top[r] = max(top[r], F32x16::load(m.scores[r] + 16 * j));
      higher |= to_bits(F32x16::broadcast(m.top[first + r]) < top[r]) != 0;
    }
    alignas(64) float keep[16];
    F32x16::broadcast(1.0f).store(keep);
    if (higher) {  // rare once some keys are in: else weights do not have to wait for the maximum
      alignas(64) float next[16] = {};
      for (int r = 0; r < ROWS; ++r) {
        keep[r] = m.top[first + r];
        next[r] = std::max(keep[r], reduce_max(top[r]));
        m.top[first + r] = next[r];
      }
      softmax::power_of_two(F32x16::load(keep) - F32x16::load(next)).store(keep);
    }
    alignas(64) float gain[16] = {};
    for (int r = 0; r < ROWS; ++r) {
      F32x16 sums = F32x16::load(m.sums[first + r]) * F32x16::broadcast(keep[r]);
      for (int j = 0; j < kGroupsInBlock; ++j) {
        const F32x16 score = F32x16::load(m.scores[r] + 16 * j) - F32x16::broadcast(m.top[first + r]);
        const F32x16 weight = softmax::power_of_two(score);
        if constexpr (kIntegers) {
          weight.store(m.scores[r] + 16 * j);
        } else {
          to_operands<E>(weight, m.weights[r] + 16 * j);
        }
        sums = sums + weight;
      }
      sums.store(m.sums[first + r]);
    }
    if constexpr (kIntegers) round_weights<ROWS>(block, following, gain);
    add_values<E, Shape::DV, ROWS>(m.weights[0], block, following, keep, gain, m.acc[first]);
  }

  /// Multiplies the weights by the scales of their values, and rounds each row to integers in units of its gain: its
  /// greatest product becomes the greatest integer, so that rows of small weights keep their digits.
  template <int ROWS>
  void round_weights(const BlockGroups<E>& block, const BlockGroups<E>* following, float* gain) {
    TileMemory<Shape>& m = memory_;
    const F32x16 none = F32x16::zero();
    F32x16 scales[kGroupsInBlock];
    for (int g = 0; g < kGroupsInBlock; ++g) {
      const bool seen = g >= block.begin && g < block.end;
      scales[g] = seen ? load_16(block.v_scales[g], std::min(block.keys - g * kKeyGroup, kKeyGroup)) : none;
    }
    for (int g = 0; following != nullptr && g < kGroupsInBlock; g += 2) {  // two groups a line
      prefetch(following->k_scales[g]);
      prefetch(following->v_scales[g]);
    }
    for (int r = 0; r < ROWS; ++r) {
      F32x16 most = none;
      for (int j = 0; j < kGroupsInBlock; ++j) {
        const F32x16 product = F32x16::load(m.scores[r] + 16 * j) * scales[j];
        product.store(m.scores[r] + 16 * j);
        most = max(product, most);
      }
      gain[r] = reduce_max(most);
    }
    alignas(64) float inverse[16];
    const F32x16 greatest = F32x16::load(gain), levels = F32x16::broadcast(kWeightLevels);
    select(F32x16::broadcast(1e-30f) < greatest, levels / greatest, none).store(inverse);
    (greatest / levels).store(gain);
    for (int r = 0; r < ROWS; ++r)
      for (int j = 0; j < kGroupsInBlock; ++j)
        to_operands<E>(F32x16::load(m.scores[r] + 16 * j) * F32x16::broadcast(inverse[r]), m.weights[r] + 16 * j);
  }

  /// Adds the bias, and hides what the mask hides and what is no key of the sequence.
  void apply_mask(float* scores, int64_t query, int head, int64_t key, int keys) const {
    alignas(64) float bias[kBlockKeys];
    for (int i = 0; i < keys; ++i)
      bias[i] = mask_.visible(query, key + i, head) ? mask_.bias(query, key + i, head) * softmax::kLog2E
                                                    : softmax::kHidden;
    for (int i = keys; i < kBlockKeys; ++i) bias[i] = softmax::kHidden;
    const F32x16 hidden = F32x16::broadcast(softmax::kHidden);
    for (int i = 0; i < kBlockKeys; i += 16) {
      const F32x16 added = F32x16::load(bias + i);
      select(added == hidden, hidden, F32x16::load(scores + i) + added).store(scores + i);
    }
  }

  TileMemory<Shape>& memory_;
  const Step& step_;
  const Cache<E> cache_;
  const softmax::Scale scale_;
  const Mask& mask_;
  TileRange tile_{};
  int rows_ = 0, strip_ = kStripRows;
};

}  // namespace llmc
