// Reductions and scans of one row: n elements, `step` apart. Sums and maxima of floats go 16 at a time in one order;
// integers (also bytes of bools) are taken one by one.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "llmc/norm.h"
#include "llmc/simd.h"

namespace llmc::rows {

/// What a reduction of elements of a type gives.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, float>, float, int64_t>;

template <class T>
inline Wide<T> sum(const T* x, int64_t n, int64_t step) {
  if constexpr (std::is_same_v<T, float>) {
    return sum_of(x, step, n, [](F32x16 v, int) { return v; });
  } else {
    int64_t total = 0;
    for (int64_t i = 0; i < n; ++i) total += x[i * step];
    return total;
  }
}

inline float mean(const float* x, int64_t n, int64_t step) { return sum(x, n, step) / float(n); }

/// The greatest element, or the least one with GREATEST false; NaN if any is.
template <bool GREATEST, class T>
inline T extreme(const T* x, int64_t n, int64_t step) {
  T found = x[0];
  int64_t i = 1;
  if constexpr (std::is_same_v<T, float>) {
    if (step == 1 && n >= 16) {
      F32x16 best = F32x16::loadu(x), sums = best - best;  // NaN where an element is NaN or infinite
      for (i = 16; i + 16 <= n; i += 16) {
        const F32x16 v = F32x16::loadu(x + i);
        best = GREATEST ? max(best, v) : min(best, v);
        sums = sums + (v - v);
      }
      found = GREATEST ? reduce_max(best) : reduce_min(best);
      if (!(reduce_add(sums) == 0)) i = 0, found = x[0];  // with such elements one by one
    }
  }
  for (; i < n; ++i) {
    const T v = x[i * step];
    if ((GREATEST ? v > found : v < found) || v != v) found = v;
    if (found != found) return found;
  }
  return found;
}

template <class T>
inline T amax(const T* x, int64_t n, int64_t step) {
  return extreme<true>(x, n, step);
}
template <class T>
inline T amin(const T* x, int64_t n, int64_t step) {
  return extreme<false>(x, n, step);
}

/// y = e^(x - top), and the sum of it.
inline float exponentials(const float* x, int64_t n, int64_t step, float top, float* y, int64_t ystep) {
  const F32x16 shift = F32x16::broadcast(top);
  for (int64_t i = 0; i < n; i += 16) {
    const int count = int(n - i < 16 ? n - i : 16);
    store_strided(y + i * ystep, ystep, count, exp(load_strided(x + i * step, step, count) - shift));
  }
  return sum(y, n, ystep);
}

/// y may be x when the steps are the same.
inline void softmax(const float* x, int64_t n, int64_t step, float* y, int64_t ystep) {
  const F32x16 total = F32x16::broadcast(exponentials(x, n, step, amax(x, n, step), y, ystep));
  for (int64_t i = 0; i < n; i += 16) {
    const int count = int(n - i < 16 ? n - i : 16);
    store_strided(y + i * ystep, ystep, count, load_strided(y + i * ystep, ystep, count) / total);
  }
}

/// y must not be x.
inline void log_softmax(const float* x, int64_t n, int64_t step, float* y, int64_t ystep) {
  const float top = amax(x, n, step), total = std::log(exponentials(x, n, step, top, y, ystep));
  for (int64_t i = 0; i < n; ++i) y[i * ystep] = x[i * step] - top - total;
}

/// y[i] = x[0] + ... + x[i], in this order; y may be x when the steps are the same.
template <class T, class U>
inline void cumsum(const T* x, int64_t n, int64_t step, U* y, int64_t ystep) {
  Wide<T> total = 0;
  for (int64_t i = 0; i < n; ++i) y[i * ystep] = U(total += x[i * step]);
}

}  // namespace llmc::rows
