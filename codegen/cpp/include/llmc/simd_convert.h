// Single stored numbers as floats, and vectors of elements that lie apart. See simd.h.
#pragma once

namespace llmc {

inline float to_float(bf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }
inline float to_float(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  return from_f16(x.bits);
#endif
}

/// The n <= 16 elements p[0], p[step], p[2 * step], ...; further lanes are 0.
template <class T>
inline F32x16 load_strided(const T* p, int64_t step, int n) {
  if (step == 1) return n >= 16 ? load_16(p) : load_16(p, n);
  T all[16] = {};
  for (int i = 0; i < n; ++i) all[i] = p[i * step];
  return load_16(all);
}
inline void store_strided(float* p, int64_t step, int n, F32x16 a) {
  if (step == 1) return n >= 16 ? a.storeu(p) : a.store_n(p, n);
  alignas(64) float all[16];
  a.store(all);
  for (int i = 0; i < n; ++i) p[i * step] = all[i];
}

}  // namespace llmc
