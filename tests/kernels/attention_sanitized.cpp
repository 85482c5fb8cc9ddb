// Ragged steps on memory that ends where it must: one to many tokens, cached ones before them, one to three threads.
#include <cmath>
#include <cstdlib>

#include "attention_harness.h"

template <class C>
int check(C) {
  using E = typename C::E;
  constexpr int kSize = 16, kBlocks = 40;
  std::vector<typename Stored<E>::type> k_cache(cache_elements<E>(kBlocks, kSize, C::HK, C::D));
  std::vector<typename Stored<E>::type> v_cache(cache_elements<E>(kBlocks, kSize, C::HK, C::DV));
  const std::vector<int64_t> counts[] = {{1, 17, 290}, {2, 1, 1}};
  std::vector<int64_t> lengths(3), blocks(3 * 22);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = int64_t(i * 7 % kBlocks);
  for (const auto& count : counts) {
    std::vector<int64_t> starts{0}, positions, slots;
    for (size_t b = 0; b < 3; ++b) {
      for (int64_t i = 0; i < count[b]; ++i, ++lengths[b]) {
        positions.push_back(lengths[b]);
        slots.push_back(blocks[b * 22 + size_t(lengths[b] / kSize)] * kSize + lengths[b] % kSize);
      }
      starts.push_back(int64_t(positions.size()));
    }
    const size_t tokens = positions.size();
    std::vector<float> q(tokens * C::H * C::D, 0.25f), k(tokens * C::HK * C::D, 0.5f), v(tokens * C::HK * C::DV, 2);
    std::vector<float> sinks(C::H, 1);
    for (int threads : {1, 3}) {
      std::vector<float> y(tokens * C::H * C::DV);
      const Step step{int64_t(tokens), 3, 22, 0, nullptr, positions.data(), slots.data(), starts.data(),
                      lengths.data(), blocks.data(), nullptr, kSize};
      const bool plain = threads == 1;
      const Call call{step, k_cache.data(), v_cache.data(), q.data(), k.data(), v.data(),
                      plain ? nullptr : sinks.data(), 0.5f, plain ? 0.0f : 20.0f, y.data()};
      if (attend<C>(call, threads) != 0) return 1;
      for (float x : y)
        if (!(x >= 0 && x < 2.001f)) return 1;  // all values are 2
    }
  }
  return 0;
}

int main() {
  if (check(Smol{}) != 0 || check(Odd{}) != 0 || check(Strange{}) != 0) return 1;
  if (check(Smol8{}) != 0 || check(Odd8{}) != 0 || check(Wide8{}) != 0 || check(Biased8{}) != 0) return 1;
  std::puts("ok");
}
