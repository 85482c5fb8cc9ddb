// Calls linear_harness.h on buffers that end where the data do: a sanitizer sees each step over the edge.
#include <cstdio>
#include <vector>

#include "linear_harness.h"

template <class T>
std::vector<T> exact(size_t bytes) {
  std::vector<T> v(bytes / sizeof(T));
  v.shrink_to_fit();
  return v;
}

int main() {
  for (const Case& chosen : kCases<FORMAT>)
    for (int rows : {1, 2, 9, 33})
      for (int n : {1, 17, 130})
        for (Crossover crossover : {Crossover{100, 100}, Crossover{1, 100}, Crossover{1, 1}}) {
          const size_t groups = size_t((n + 15) / 16) * size_t(group_count(chosen.k));
          const size_t entries = size_t((n + 15) / 16) * size_t(entry_count<FORMAT>(group_count(chosen.k)));
          const auto data = exact<uint8_t>(groups * FORMAT::data_bytes), scales = exact<uint8_t>(entries * FORMAT::scale_bytes),
                     extra = exact<uint8_t>(entries * FORMAT::extra_bytes);
          std::vector<float> x(size_t(rows) * size_t(chosen.k), 1.5f), y(size_t(rows) * size_t(n), 1.0f);
          // One thread by itself, whose scratch and shared memory are no larger than they must be.
          std::vector<std::byte> scratch(chosen.scratch + 64), shared(size_t(rows) * chosen.shared);
          Team team;
          team.scratch = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64);
          Call call{rows, n, {data.data(), scales.data(), extra.data()}, x.data(), y.data(), crossover, shared.data()};
          chosen.run(team, &call);
          for (float value : y)
            if (!(value == 0)) return std::puts("not zero"), 1;
          const int which = int(&chosen - kCases<FORMAT>);
          if (multiply_all(which, 3, rows, n, data.data(), scales.data(), extra.data(), x.data(), y.data(), crossover.flat,
                           crossover.gemm) != 0)
            return 1;
        }
  std::puts("ok");
}
