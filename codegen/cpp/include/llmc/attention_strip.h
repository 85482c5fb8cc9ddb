// The two products of attention for a strip of rows: queries with keys, and weights with values. One row's sum for one
// key, or for one element of the output, is a single chain in ascending order, so that it does not depend on the strip.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#include "llmc/attention_integers.h"

namespace llmc {

inline constexpr int kBlockKeys = 64;  // keys that a strip takes at a time
inline constexpr int kGroupsInBlock = kBlockKeys / kKeyGroup;
inline constexpr int kStripRows = 6;
#if defined(__AVX512F__)
inline constexpr int kStripVectors = 4;  // sums of 6 rows, a vector of each and a broadcast: 29 registers
#else
inline constexpr int kStripVectors = 1;
#endif

/// What queries and weights are rounded to before they meet keys and values of type E.
template <class E>
using Operand =
    std::conditional_t<std::is_same_v<E, BF16>, uint16_t, std::conditional_t<std::is_same_v<E, Int8>, int16_t, float>>;

/// What 16 sums of their products are held in.
template <class E>
using Sums = std::conditional_t<std::is_same_v<E, Int8>, PairSums, F32x16>;

/// Rounds 16 numbers.
template <class E>
inline void to_operands(F32x16 x, Operand<E>* out) {
  if constexpr (std::is_same_v<E, BF16>) {
#if defined(__AVX512BF16__)
    const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), rounded);
#else
    store_16(reinterpret_cast<bf16*>(out), x);
#endif
  } else if constexpr (std::is_same_v<E, Int8>) {
    store_integers(x, out);
  } else {
    x.storeu(out);
  }
}

/// One dot-product step of 16 keys, or of 16 elements of values: what a row's operands are multiplied with.
template <class E>
struct Lanes {
  F32x16 lanes;

  explicit Lanes(const float* p) : lanes(F32x16::loadu(p)) {}
  explicit Lanes(const uint16_t* p) : lanes(load_16(reinterpret_cast<const f16*>(p))) {}
  F32x16 multiply_add(const float* a, F32x16 sum) const { return fma(F32x16::broadcast(*a), lanes, sum); }
};

template <>
struct Lanes<Int8> : Pairs {
  using Pairs::Pairs;
};

template <>
struct Lanes<BF16> {
#if defined(__AVX512BF16__)
  __m512i pairs;

  explicit Lanes(const uint16_t* p) : pairs(_mm512_loadu_si512(p)) {}
  explicit Lanes(__m512i held) : pairs(held) {}
  F32x16 multiply_add(const uint16_t* a, F32x16 sum) const {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    const __m512i wide = _mm512_set1_epi32(pair);
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(wide))};
  }
#else
  F32x16 even, odd;

  explicit Lanes(const uint16_t* p) {
    alignas(64) uint32_t low[16], high[16];
    for (int i = 0; i < 16; ++i) {
      uint32_t pair;
      std::memcpy(&pair, p + 2 * i, sizeof pair);
      low[i] = pair << 16;
      high[i] = pair & 0xffff0000;
    }
    even = F32x16::load(reinterpret_cast<const float*>(low));
    odd = F32x16::load(reinterpret_cast<const float*>(high));
  }
  F32x16 multiply_add(const uint16_t* a, F32x16 sum) const {
    sum = fma(F32x16::broadcast(to_float(bf16{a[0]})), even, sum);
    return fma(F32x16::broadcast(to_float(bf16{a[1]})), odd, sum);
  }
#endif
};

/// The lanes at p, in a register: gcc may load a vector again for every row, which costs a full strip its speed.
template <class E, bool HELD>
inline Lanes<E> load_lanes(const typename Stored<E>::type* p) {
#if defined(__AVX512BF16__)
  if constexpr (HELD && std::is_same_v<E, BF16>) {
    __m512i held = _mm512_loadu_si512(p);
    asm("" : "+v"(held));
    return Lanes<E>(held);
  }
#endif
#if defined(__AVX512VNNI__)
  if constexpr (HELD && std::is_same_v<E, Int8>) {
    Lanes<E> held(p);
    asm("" : "+v"(held.v));
    return held;
  }
#endif
  return Lanes<E>(p);
}

/// sums[r][j] += the operands of row r at a + r * stride times the lanes at b[j], in registers.
template <class E, int ROWS, int V>
inline void multiply_add(const Operand<E>* a, int stride, const typename Stored<E>::type* const (&b)[V],
                         Sums<E> (&sums)[ROWS][V]) {
  [&]<size_t... J>(std::index_sequence<J...>) {
    const Lanes<E> lanes[V] = {load_lanes<E, ROWS == kStripRows>(b[J])...};
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) ((sums[r][J] = lanes[J].multiply_add(a + r * stride, sums[r][J])), ...);
  }(std::make_index_sequence<V>());
}

/// Keys and values of a block of 64 positions, by groups of 16. Groups that hold nothing to see point to one that does.
template <class E>
struct BlockGroups {
  const typename Stored<E>::type *k[kGroupsInBlock], *v[kGroupsInBlock];
  const bf16 *k_scales[kGroupsInBlock], *v_scales[kGroupsInBlock];  // null unless keys and values have scales
  int begin, end;  // the groups that hold something to see
  int keys;        // of the sequence, from the first position of the block
};

/// Asks for memory that is read a block later. Into the second-level cache: the first has too few requests in flight.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

/// How many vectors of 16 lanes of P elements begin in a line of the cache.
template <class E>
inline constexpr int kVectorsInLine = std::max<int>(64 / (16 * Stored<E>::pack * sizeof(typename Stored<E>::type)), 1);

/// scores[r, 16 j + lane] = finish(r, j, q[r] . key `lane` of group j), for ROWS rows. q: [rows, D padded to 16]; scores:
/// [rows, 64]. following: null, or the block whose keys are to be prefetched.
template <class E, int D, int ROWS, class Finish>
inline void dot_keys(const Operand<E>* q, const BlockGroups<E>& block, const BlockGroups<E>* following,
                     const Finish& finish, float* scores) {
  using Type = typename Stored<E>::type;
  constexpr int pack = Stored<E>::pack, width = stored_width<E>(D), kStride = (D + 15) / 16 * 16, V = kStripVectors;
  for (int first = 0; first < kGroupsInBlock; first += V) {
    Sums<E> sums[ROWS][V];
    for (int r = 0; r < ROWS; ++r)
      for (int j = 0; j < V; ++j) sums[r][j] = Sums<E>::zero();
    int ahead = first, done = 0;  // prefetched: groups, and elements of the next one
    for (int i = 0; i < width; i += pack) {
      const Type* keys[V];
      for (int j = 0; j < V; ++j) keys[j] = block.k[first + j] + i * kKeyGroup;
      multiply_add<E>(q + i, kStride, keys, sums);
      if (following == nullptr) continue;
      for (int j = 0; j < V; j += kVectorsInLine<E>) prefetch(following->k[ahead] + done + j * kKeyGroup * pack);
      done += V * kKeyGroup * pack;
      if (done >= kKeyGroup * width) {
        done -= kKeyGroup * width;
        ahead = std::min(ahead + 1, kGroupsInBlock - 1);
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int j = 0; j < V; ++j) finish(r, first + j, to_floats(sums[r][j])).store(scores + r * kBlockKeys + (first + j) * 16);
  }
}

/// acc[r, 16 first + lane] = acc * scale[r] + weights[r] . values, for V vectors of LAST lanes in the last one.
/// weights: [rows, 64], those in integers in units of gain[r]; acc: [rows, stride].
template <class E, int DV, int ROWS, int V, int LAST>
inline void add_vectors(const Operand<E>* weights, const BlockGroups<E>& block, const BlockGroups<E>* following,
                        int first, const float* scale, const float* gain, float* acc, int stride) {
  using Type = typename Stored<E>::type;
  constexpr int pack = Stored<E>::pack, width = stored_width<E>(DV);
  constexpr bool integers = std::is_same_v<Sums<E>, PairSums>;
  const auto kept = [&](int r, int j) {
    return F32x16::load(acc + r * stride + (first + j) * 16) * F32x16::broadcast(scale[r]);
  };
  Sums<E> sums[ROWS][V];
  for (int r = 0; r < ROWS; ++r) {
    for (int j = 0; j < V; ++j) {
      if constexpr (integers) {
        sums[r][j] = PairSums::zero();
      } else {
        sums[r][j] = kept(r, j);
      }
    }
  }
  const auto step = [&](const Type* values, const Operand<E>* w) {
    const Type* lanes[V];
    for (int j = 0; j < V; ++j) lanes[j] = values + j * 16 * pack;
    multiply_add<E>(w, kBlockKeys, lanes, sums);
  };
  // A step of which not every lane, or not every key, may be read: what lies there may be anything, even NaN.
  const auto step_of_part = [&](const Type* values, const Operand<E>* w, int keys) {
    Type copy[V * 16 * pack] = {};
    for (int i = 0; i < ((V - 1) * 16 + LAST) * pack; ++i)
      if (i % pack < keys) copy[i] = values[i];
    step(copy, w);
  };
  for (int g = block.begin; g < block.end; ++g) {
    const Type* values = block.v[g] + first * 16 * pack;
    const Operand<E>* w = weights + g * kKeyGroup;
    const Type* ahead = following != nullptr ? following->v[g] + first * 16 * pack : nullptr;
    const int keys = std::min(kKeyGroup, block.keys - g * kKeyGroup), whole = keys / pack * pack;
    for (int key = 0; key < whole; key += pack, values += width * pack, w += pack) {
      if (ahead != nullptr)
        for (int j = 0; j < V; j += kVectorsInLine<E>) prefetch(ahead + key * width + j * 16 * pack);
      if constexpr (LAST == 16) {
        step(values, w);
      } else {
        step_of_part(values, w, pack);
      }
    }
    if (whole < keys) step_of_part(values, w, keys - whole);
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int j = 0; j < V; ++j) {
      F32x16 sum = to_floats(sums[r][j]);
      if constexpr (integers) sum = fma(sum, F32x16::broadcast(gain[r]), kept(r, j));
      sum.store(acc + r * stride + (first + j) * 16);
    }
  }
}

/// acc[r] = acc[r] * scale[r] + weights[r] . values of the block, for ROWS rows. acc: [rows, DV padded to 16]; gain as in
/// `add_vectors`.
template <class E, int DV, int ROWS>
inline void add_values(const Operand<E>* weights, const BlockGroups<E>& block, const BlockGroups<E>* following,
                       const float* scale, const float* gain, float* acc) {
  constexpr int V = kStripVectors, whole = DV / 16 / V * V, rest = (DV + 15) / 16 - whole, width = (DV + 15) / 16 * 16;
  constexpr int last = DV % 16 ? DV % 16 : 16;
  for (int first = 0; first < whole; first += V)
    add_vectors<E, DV, ROWS, V, 16>(weights, block, following, first, scale, gain, acc, width);
  if constexpr (rest > 0) add_vectors<E, DV, ROWS, rest, last>(weights, block, following, whole, scale, gain, acc, width);
}

}  // namespace llmc
