// The shapes with edges on memory that ends where it must, with one to forty rows.
#include <cstdlib>

#include "moe_harness.h"

template <class Shape>
int check(Shape) {
  for (int64_t rows : {1, 2, 3, 40}) {
    const auto parts = [](auto format, int tiles, int inputs) {
      using Format = decltype(format);
      const size_t groups = size_t(tiles) * size_t(group_count(inputs));
      return std::vector<std::vector<uint8_t>>{std::vector<uint8_t>(groups * Format::data_bytes, 1),
                                               std::vector<uint8_t>(groups * Format::scale_bytes, 1),
                                               std::vector<uint8_t>(groups * Format::extra_bytes, 1)};
    };
    const auto up = parts(typename Shape::Up{}, Shape::E * Shape::up_tiles, Shape::D);
    const auto down = parts(typename Shape::Down{}, Shape::E * Shape::down_tiles, Shape::F);
    const size_t tokens = size_t(rows);
    std::vector<float> up_bias(Shape::E * Shape::up_rows, 1), down_bias(Shape::E * Shape::D, 1), x(tokens * Shape::D, 0.5f);
    std::vector<float> gates(tokens * Shape::K, 0.5f), y(tokens * Shape::D);
    std::vector<int64_t> ids(tokens * Shape::K);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = int64_t(i * i % Shape::E);
    auto* shared = static_cast<std::byte*>(std::aligned_alloc(64, tokens * moe_shared_bytes<Shape>()));
    const Call call{rows, {up[0].data(), up[1].data(), up[2].data()}, {down[0].data(), down[1].data(), down[2].data()},
                    up_bias.data(), down_bias.data(), x.data(), ids.data(), gates.data(), y.data(), shared, {7, 1}, {2, 17}};
    for (int threads : {1, 3})
      if (run<Shape>(call, threads) != 0) return 1;
    std::free(shared);
  }
  return 0;
}

int main() {
  if (check(Odd{}) != 0 || check(Plain{}) != 0) return 1;
  std::puts("ok");
}
