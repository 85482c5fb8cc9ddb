// Lanes for a tile's 16 rows in plain C++, for any target. See tile.h.
#pragma once

namespace llmc::tile {

struct Ints {
  int32_t v[16];
};
struct Bytes {
  uint8_t v[64];
};

struct Registers {
  static constexpr int int_rows = 2, float_rows = 2;
  static constexpr int panel_tiles = 1, panel_rows = 2;
};

template <class F>
inline Ints each_row(F f) {
  Ints all;
  for (int r = 0; r < 16; ++r) all.v[r] = f(r);
  return all;
}
template <class F>
inline Bytes each_byte(F f) {
  Bytes all;
  for (int i = 0; i < 64; ++i) all.v[i] = static_cast<uint8_t>(f(i));
  return all;
}
template <class F>
inline Floats each_float(F f) {
  float all[16];
  for (int r = 0; r < 16; ++r) all[r] = f(r);
  return load(all);
}

inline Ints broadcast_int(int32_t x) {
  return each_row([&](int) { return x; });
}
inline Floats to_floats(const Ints& v) {
  return each_float([&](int r) { return static_cast<float>(v.v[r]); });
}

inline Bytes no_bytes() { return {}; }
inline Bytes load_bytes(const void* p) {
  Bytes all;
  std::memcpy(all.v, p, sizeof all.v);
  return all;
}
inline void store_bytes(void* p, const Bytes& v) { std::memcpy(p, v.v, sizeof v.v); }
inline Bytes low_nibbles(const Bytes& v) {
  return each_byte([&](int i) { return v.v[i] & 15; });
}
inline Bytes high_nibbles(const Bytes& v) {
  return each_byte([&](int i) { return v.v[i] >> 4; });
}
inline Bytes low_nibbles_times_8(const Bytes& v) {
  return each_byte([&](int i) { return (v.v[i] & 15) * 8; });
}
inline Bytes high_nibbles_times_8(const Bytes& v) {
  return each_byte([&](int i) { return (v.v[i] >> 4) * 8; });
}
/// The two bits J of each byte, four bits higher.
template <int J>
inline Bytes pairs_times_16(const Bytes& v) {
  return each_byte([&](int i) { return (v.v[i] >> 2 * J & 3) * 16; });
}
inline Bytes add_bytes(const Bytes& a, const Bytes& b) {
  return each_byte([&](int i) { return a.v[i] + b.v[i]; });
}

/// 128 - zero of each row, for each of its four inputs.
inline Bytes above_zeros(const uint8_t* zeros) {
  return each_byte([&](int i) { return 128 - zeros[i / 4]; });
}

/// sum + the products of four unsigned weights a row with the four signed inputs at `x`.
inline Ints dot(const Ints& sum, const Bytes& weights, const int8_t* x) {
  return each_row([&](int r) {
    const uint8_t* w = weights.v + 4 * r;
    return sum.v[r] + w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
  });
}
/// The same for weights below 128.
inline Ints dot_small(const Ints& sum, const Bytes& weights, const int8_t* x) { return dot(sum, weights, x); }

/// 8 * sum + zero * `minus_sum` for the zeros of 16 rows.
inline Ints eighths(const Ints& sum, const uint8_t* zeros, int32_t minus_sum) {
  return each_row([&](int r) { return 8 * sum.v[r] + zeros[r] * minus_sum; });
}

/// Byte I of each row as e4m3: the number in units of kE4m3Unit.
template <int I>
inline Floats e4m3(const Bytes& v) {
  return each_float([&](int r) {
    const auto top = static_cast<int32_t>(uint32_t{v.v[4 * r + I]} << 24);
    return std::bit_cast<float>(static_cast<uint32_t>(top >> 4) & kE4m3Bits);
  });
}

/// acc + the products of two bfloat16 weights a row with the two bfloat16 inputs at `x`.
inline Floats dot_bf16(Floats acc, const void* weights, const uint16_t* x) {
  const auto* w = static_cast<const uint16_t*>(weights);
  for (int i = 1; i >= 0; --i) {
    const Floats all = each_float([&](int r) { return to_float(bf16{w[2 * r + i]}); });
    acc = llmc::fma(all, broadcast(to_float(bf16{x[i]})), acc);
  }
  return acc;
}

}  // namespace llmc::tile
