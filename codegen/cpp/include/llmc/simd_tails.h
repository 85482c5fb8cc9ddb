// Loads and stores of fewer than 16 elements, for targets without masked ones of every type. See simd.h.
#pragma once

namespace llmc {

inline F32x16 load_16(const float* p, int n) { return F32x16::load_n(p, n); }
inline void store_16(float* p, F32x16 a, int n) { a.store_n(p, n); }

/// The first n lanes from p, the others 0; reads no further than p[n].
template <class T>
inline F32x16 load_16(const T* p, int n) {
  T all[16] = {};
  std::memcpy(all, p, sizeof(T) * size_t(n < 16 ? n : 16));
  return load_16(all);
}
template <class T>
inline void store_16(T* p, F32x16 a, int n) {
  T all[16];
  store_16(all, a);
  std::memcpy(p, all, sizeof(T) * size_t(n < 16 ? n : 16));
}

}  // namespace llmc
