// Everything that works on single rows, as C functions for the tests and as a program for the sanitizers.
#pragma once

#include <cstdio>
#include <vector>

#include "llmc/activation.h"
#include "llmc/gather.h"
#include "llmc/norm.h"
#include "llmc/rope.h"
#include "llmc/rows.h"
#include "llmc/simd.h"
#include "llmc/topk.h"

using namespace llmc;

template <class F>
void each(const float* x, int64_t n, float* y, F f) {
  activate_row(x, n, f, y);
}

EXPORT void math(int which, const float* x, int64_t n, float* y) {
  switch (which) {
    case 0: return each(x, n, y, [](F32x16 v) { return exp(v); });
    case 1: return each(x, n, y, [](F32x16 v) { return round(v); });
    case 2: return each(x, n, y, [](F32x16 v) { return abs(v); });
    case 3: return each(x, n, y, [](F32x16 v) { return sqrt(v); });
    case 4: return each(x, n, y, [](F32x16 v) { return erf(v); });
    case 5: return each(x, n, y, [](F32x16 v) { return -v; });
    case 10: return each(x, n, y, [](F32x16 v) { return silu(v); });
    case 11: return each(x, n, y, [](F32x16 v) { return gelu_erf(v); });
    case 12: return each(x, n, y, [](F32x16 v) { return gelu_tanh(v); });
    case 13: return each(x, n, y, [](F32x16 v) { return quick_gelu(v); });
    case 14: return each(x, n, y, [](F32x16 v) { return relu(v); });
    case 15: return each(x, n, y, [](F32x16 v) { return relu2(v); });
    case 16: return each(x, n, y, [](F32x16 v) { return sigmoid(v); });
    case 17: return each(x, n, y, [](F32x16 v) { return tanh(v); });
  }
}

template <class F>
void pairwise(const float* a, const float* b, int64_t n, float* y, F f) {
  for (int64_t i = 0; i < n; i += 16) {
    const int count = int(n - i < 16 ? n - i : 16);
    f(F32x16::load_n(a + i, count), F32x16::load_n(b + i, count)).store_n(y + i, count);
  }
}

EXPORT void binary(int which, const float* a, const float* b, int64_t n, float* y) {
  const F32x16 one = F32x16::broadcast(1), zero = F32x16::zero();
  switch (which) {
    case 0: return pairwise(a, b, n, y, [](F32x16 p, F32x16 q) { return p + q; });
    case 1: return pairwise(a, b, n, y, [](F32x16 p, F32x16 q) { return p - q; });
    case 2: return pairwise(a, b, n, y, [](F32x16 p, F32x16 q) { return p * q; });
    case 3: return pairwise(a, b, n, y, [](F32x16 p, F32x16 q) { return p / q; });
    case 4: return pairwise(a, b, n, y, [](F32x16 p, F32x16 q) { return min(p, q); });
    case 5: return pairwise(a, b, n, y, [](F32x16 p, F32x16 q) { return max(p, q); });
    case 6: return pairwise(a, b, n, y, [](F32x16 p, F32x16 q) { return copysign(p, q); });
    case 7: return pairwise(a, b, n, y, [&](F32x16 p, F32x16 q) { return select(p < q, one, zero); });
    case 8: return pairwise(a, b, n, y, [&](F32x16 p, F32x16 q) { return select(p <= q, one, zero); });
    case 9: return pairwise(a, b, n, y, [&](F32x16 p, F32x16 q) { return select(p == q, one, zero); });
    case 10: return pairwise(a, b, n, y, [](F32x16 p, F32x16 q) { return scale_by_power(p, q); });
    case 11: return gated_act_row(a, b, n, [](F32x16 v) { return silu(v); }, y);
  }
}

EXPORT void lanes(const float* x, float* y) {
  const F32x16 v = F32x16::loadu(x);
  y[0] = reduce_add(v);
  y[1] = reduce_max(v);
  y[2] = reduce_min(v);
  y[3] = float(to_bits(v < F32x16::zero()));
}

template <class T>
void narrow_wide(const float* x, int64_t n, T* stored, float* y) {
  for (int64_t i = 0; i < n; i += 16) {
    const int count = int(n - i < 16 ? n - i : 16);
    count == 16 ? store_16(stored + i, F32x16::loadu(x + i)) : store_16(stored + i, F32x16::load_n(x + i, count), count);
    count == 16 ? load_16(stored + i).storeu(y + i) : load_16(stored + i, count).store_n(y + i, count);
  }
}
EXPORT void convert(int half, const float* x, int64_t n, void* stored, float* y, float* single) {
  half ? narrow_wide(x, n, static_cast<f16*>(stored), y) : narrow_wide(x, n, static_cast<bf16*>(stored), y);
  for (int64_t i = 0; i < n; ++i)
    single[i] = half ? to_float(static_cast<f16*>(stored)[i]) : to_float(static_cast<bf16*>(stored)[i]);
}

EXPORT void rms(int type, const float* x, int64_t step, int64_t n, const void* w, float eps, float offset, float* y) {
  if (type == 0) rms_norm_row(x, step, n, static_cast<const float*>(w), eps, offset, y);
  if (type == 1) rms_norm_row(x, step, n, static_cast<const f16*>(w), eps, offset, y);
  if (type == 2) rms_norm_row(x, step, n, static_cast<const bf16*>(w), eps, offset, y);
}
EXPORT void layer(const float* x, int64_t step, int64_t n, const float* w, const float* b, float eps, float* y) {
  layer_norm_row(x, step, n, w, b, eps, y);
}

EXPORT void rotate(int interleaved, const float* x, const float* cos, const float* sin, int64_t xs, int64_t cs, int64_t ss,
                   int n, int rotated, float* y) {
  interleaved ? rope_row<true>(x, cos, sin, xs, cs, ss, n, rotated, y) : rope_row<false>(x, cos, sin, xs, cs, ss, n, rotated, y);
}
EXPORT void rotate_head(int interleaved, float* head, const float* cos, const float* sin) {
  interleaved ? rope_head<true, 64, 48>(head, cos, sin) : rope_head<false, 64, 48>(head, cos, sin);
}

EXPORT void reduce(int which, const float* x, int64_t n, int64_t step, float* y, int64_t ystep) {
  switch (which) {
    case 0: *y = rows::sum(x, n, step); return;
    case 1: *y = rows::mean(x, n, step); return;
    case 2: *y = rows::amax(x, n, step); return;
    case 3: *y = rows::amin(x, n, step); return;
    case 4: return rows::softmax(x, n, step, y, ystep);
    case 5: return rows::log_softmax(x, n, step, y, ystep);
    case 6: return rows::cumsum(x, n, step, y, ystep);
  }
}
EXPORT void reduce_int(const int64_t* x, int64_t n, int64_t step, int64_t* y) {
  y[0] = rows::sum(x, n, step);
  y[1] = rows::amax(x, n, step);
  y[2] = rows::amin(x, n, step);
  rows::cumsum(x, n, step, y + 3, 1);
}
EXPORT void top(const float* x, int64_t step, int64_t n, int k, float* values, int64_t* indices) {
  topk_row(x, step, n, k, values, indices);
}

template <int K>
void gather_format(int format, const Weights& w, int64_t row, float* y) {
  switch (format) {
    case 0: return gather_row<F32, K>(w, row, y);
    case 1: return gather_row<F16, K>(w, row, y);
    case 2: return gather_row<BF16, K>(w, row, y);
    case 3: return gather_row<Int8, K>(w, row, y);
    case 4: return gather_row<Int4, K>(w, row, y);
    case 5: return gather_row<Int4M, K>(w, row, y);
    case 6: return gather_row<FP8, K>(w, row, y);
    case 7: return gather_row<Int6, K>(w, row, y);
    case 8: return gather_row<Int4G64, K>(w, row, y);
    case 9: return gather_row<Int4G128, K>(w, row, y);
    case 10: return gather_row<Int6G16, K>(w, row, y);
  }
}
/// Returns whether K is one of those compiled.
EXPORT int embed(int format, int k, const void* a, const void* b, const void* c, int64_t row, float* y) {
  const Weights w{a, b, c};
  if (k == 1) return gather_format<1>(format, w, row, y), 1;
  if (k == 31) return gather_format<31>(format, w, row, y), 1;
  if (k == 64) return gather_format<64>(format, w, row, y), 1;
  if (k == 83) return gather_format<83>(format, w, row, y), 1;
  return 0;
}
EXPORT void plain(int type, const void* table, int64_t row, int64_t columns, float* y) {
  if (type == 0) gather_row(static_cast<const float*>(table), row, columns, y);
  if (type == 1) gather_row(static_cast<const f16*>(table), row, columns, y);
  if (type == 2) gather_row(static_cast<const bf16*>(table), row, columns, y);
}
