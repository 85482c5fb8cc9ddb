// Attention in a few shapes, each with its mask, for the tests and for the sanitizers.
#pragma once

#include <cstdio>
#include <vector>

#include "llmc/attention.h"

using namespace llmc;

struct NoBias {
  float bias(int64_t, int64_t, int) const { return 0; }
};
struct Causal : NoBias {
  bool visible(int64_t q, int64_t k, int) const { return k <= q; }
  int64_t first(int64_t) const { return 0; }
  int64_t last(int64_t q) const { return q; }
  bool all(int64_t q_low, int64_t, int64_t, int64_t k_high) const { return k_high <= q_low; }
};
struct Window : NoBias {  // 70 keys, the query's own among them
  bool visible(int64_t q, int64_t k, int) const { return k <= q && q - k < 70; }
  int64_t first(int64_t q) const { return q - 69; }
  int64_t last(int64_t q) const { return q; }
  bool all(int64_t q_low, int64_t q_high, int64_t k_low, int64_t k_high) const {
    return k_high <= q_low && q_high - k_low < 70;
  }
};
struct Prefix : NoBias {  // the bounds say less than they could
  bool visible(int64_t q, int64_t k, int) const { return k <= q || k < 40; }
  int64_t first(int64_t) const { return 0; }
  int64_t last(int64_t) const { return INT64_MAX; }
  bool all(int64_t, int64_t, int64_t, int64_t) const { return false; }
};
struct Before : NoBias {  // the first queries see nothing
  bool visible(int64_t q, int64_t k, int h) const { return k < q - 20 * h; }
  int64_t first(int64_t) const { return 0; }
  int64_t last(int64_t q) const { return q - 1; }
  bool all(int64_t, int64_t, int64_t, int64_t) const { return false; }
};
struct Alibi : Causal {
  float bias(int64_t q, int64_t k, int h) const { return -0.0625f * float(h + 1) * float(q - k); }
  bool all(int64_t, int64_t, int64_t, int64_t) const { return false; }
};

struct Call {
  Step step;
  void *k_cache, *v_cache;
  const float *q, *k, *v, *sinks;
  float scale, softcap;
  float* y;
};

template <class E_, int H_, int HK_, int D_, int DV_, class Mask_>
struct Case {
  using E = E_;
  using Mask = Mask_;
  static constexpr int H = H_, HK = HK_, D = D_, DV = DV_;
};

/// Writes the keys and values of a step and attends, on a team of its own.
template <class C>
int attend(const Call& call, int threads) {
  using E = typename C::E;
  constexpr int H = C::H, HK = C::HK, D = C::D, DV = C::DV;
  constexpr size_t kShared = attention_shared_bytes<E, H, HK, D, DV>();
  struct Work {
    const Call& call;
    std::byte* shared;
  } work{call, static_cast<std::byte*>(std::aligned_alloc(64, kShared))};
  Pool pool(threads, nullptr, attention_scratch_bytes<E, H, HK, D, DV>());
  if (!pool.ok()) return 1;
  pool.run(
      [](Team& team, void* argument) {
        const auto& [c, shared] = *static_cast<const Work*>(argument);
        using Type = typename Stored<E>::type;
        auto *k_cache = static_cast<Type*>(c.k_cache), *v_cache = static_cast<Type*>(c.v_cache);
        const Cache<E> cache{k_cache, v_cache, HK, D, DV, c.step.block_size};
        for (int64_t t = team.tid; t < c.step.T; t += team.n) {
          for (int h = 0; h < HK; ++h) {
            write_key<E, D>(cache, c.step.slots[t], h, c.k + (t * HK + h) * D);
            write_value<E, DV>(cache, c.step.slots[t], h, c.v + (t * HK + h) * DV);
          }
        }
        team.barrier();
        attention<E, H, HK, D, DV>(
            team, c.step, cache, c.sinks, c.scale, c.softcap, typename C::Mask{},
            [&](int64_t t, int h) { return c.q + (t * H + h) * D; }, shared,
            [&](int64_t t, int h, const float* y) { std::copy_n(y, DV, c.y + (t * H + h) * DV); });
      },
      &work);
  std::free(work.shared);
  return 0;
}

using Smol = Case<BF16, 9, 3, 64, 64, Causal>;
using Odd = Case<F32, 4, 4, 20, 24, Window>;
using Single = Case<F16, 8, 1, 80, 80, Prefix>;
using Strange = Case<BF16, 5, 1, 33, 7, Before>;
using Biased = Case<F32, 6, 2, 24, 33, Alibi>;
using Smol8 = Case<Int8, 9, 3, 64, 64, Causal>;
using Odd8 = Case<Int8, 5, 1, 33, 7, Before>;
using Wide8 = Case<Int8, 12, 1, 80, 128, Window>;
using Biased8 = Case<Int8, 6, 2, 24, 33, Alibi>;
using Prefix8 = Case<Int8, 8, 8, 1, 1, Prefix>;
