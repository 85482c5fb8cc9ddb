// Pools opened, used and closed under a sanitizer.
#include "threads_harness.h"

int main() {
  for (int threads = 1; threads <= 4; ++threads) {
    if (stress(threads, nullptr, 20, 50) != 0) return 1;
    for (int i = 0; i < 20; ++i)
      if (stress(threads, nullptr, i % 3, 1) != 0) return 1;
  }
  const int absent[] = {0, 100000, 0};
  if (stress(3, absent, 1, 1) != -1) return 1;
  if (idle_cost(3, 0.05) < 0) return 1;
  std::puts("ok");
}
