// Calls everything of rows_harness.h on buffers that end where the data does: a sanitizer sees each step over the edge.
#include "rows_harness.h"

int main() {
  for (int n : {1, 2, 15, 16, 17, 31, 33, 64, 97}) {
    const size_t size = size_t(n);
    std::vector<float> x(size), b(size), y(size), w(size, 1.0f);
    for (int i = 0; i < n; ++i) x[size_t(i)] = float(i % 7) - 3, b[size_t(i)] = float(i % 5) - 2;
    for (int which = 0; which < 18; ++which) math(which, x.data(), n, y.data());
    for (int which = 0; which < 12; ++which) binary(which, x.data(), b.data(), n, y.data());
    std::vector<uint16_t> half(size);
    std::vector<float> single(size);
    for (int kind : {0, 1}) convert(kind, x.data(), n, half.data(), y.data(), single.data());
    rms(0, x.data(), 1, n, w.data(), 1e-6f, 0, y.data());
    for (int type : {1, 2}) rms(type, x.data(), 1, n, half.data(), 1e-6f, 1, y.data());
    layer(x.data(), 1, n, w.data(), b.data(), 1e-6f, y.data());
    const int part = (n + 2) / 3;  // elements of a row with step 3
    rms(0, x.data(), 3, part, nullptr, 1e-6f, 0, y.data());
    layer(x.data(), 3, part, nullptr, nullptr, 1e-6f, y.data());
    for (int which = 0; which < 7; ++which) {
      reduce(which, x.data(), n, 1, y.data(), 1);
      reduce(which, x.data(), part, 3, y.data(), 1);
    }
    for (int interleaved : {0, 1}) rotate(interleaved, x.data(), w.data(), b.data(), 1, 1, 1, n, n / 2 * 2, y.data());
    std::vector<int64_t> indices(size);
    for (int k : {0, 1, (n + 1) / 2, n}) top(x.data(), 1, n, k, y.data(), indices.data());
    for (int type : {0, 1, 2}) {
      std::vector<char> table(3 * size * (type == 0 ? 4 : 2));
      plain(type, table.data(), 2, n, y.data());
    }
  }
  for (int format = 0; format < 6; ++format) {
    for (int k : {1, 31, 64, 83}) {
      const size_t groups = size_t(k + 31) / 32;
      std::vector<uint8_t> data(2 * groups * 2048), scales(2 * groups * 32), extra(2 * groups * 32);
      const size_t bytes[] = {2048, 1024, 1024, 512, 256, 256};
      std::vector<uint8_t> exact(data.begin(), data.begin() + long(2 * groups * bytes[format]));
      std::vector<float> y(static_cast<size_t>(k));
      if (!embed(format, k, exact.data(), scales.data(), extra.data(), 31, y.data())) return 1;
    }
  }
  std::puts("ok");
}
