// The k largest elements of a row.
#pragma once

#include <cstdint>

namespace llmc {

/// Whether x comes before y in descending order, where NaN is the greatest.
inline bool comes_before(float x, float y) { return x > y || (x != x && y == y); }

/// Writes the k <= n largest of n elements, `step` apart, in descending order, and where they are. Of equal elements
/// the one of the lower index comes first. Insertion into a sorted list: for the short rows of a router.
inline void topk_row(const float* x, int64_t step, int64_t n, int k, float* values, int64_t* indices) {
  int found = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float v = x[i * step];
    if (found == k && (k == 0 || !comes_before(v, values[k - 1]))) continue;
    int at = found < k ? found++ : k - 1;
    for (; at > 0 && comes_before(v, values[at - 1]); --at) {
      values[at] = values[at - 1];
      indices[at] = indices[at - 1];
    }
    values[at] = v;
    indices[at] = i;
  }
}

}  // namespace llmc
