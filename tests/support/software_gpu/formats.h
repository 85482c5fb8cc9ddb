// Floats of 8 and 16 bits: what they stand for, and rounding to them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace software_gpu {

struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};
struct E4m3 {
    uint8_t bits;
};
struct E5m2 {
    uint8_t bits;
};

struct Format {
    int exponent_bits, mantissa_bits;
    bool infinite;  // whether it has infinities
    uint32_t nan;   // the NaN that instructions make

    constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
    constexpr int smallest_exponent() const { return 1 - bias(); }
    constexpr uint32_t largest() const {  // code of the largest finite number
        return infinite ? (((1u << exponent_bits) - 1) << mantissa_bits) - 1 : nan - 1;
    }
};

template <class T>
inline constexpr Format format{};
template <>
inline constexpr Format format<Half>{5, 10, true, 0x7fff};
template <>
inline constexpr Format format<BFloat>{8, 7, true, 0x7fff};
template <>
inline constexpr Format format<E4m3>{4, 3, false, 0x7f};
template <>
inline constexpr Format format<E5m2>{5, 2, true, 0x7f};

inline double power_of_two(int exponent) { return std::bit_cast<double>(int64_t(exponent + 1023) << 52); }

// The code of the number of a format that is next to `value`: ties to even, or toward zero. Numbers beyond the largest
// become it if `saturate` or `toward_zero`, else infinite.
template <class T>
T narrow(double value, bool toward_zero = false, bool saturate = false) {
    constexpr Format f = format<T>;
    using Bits = decltype(T::bits);
    uint64_t bits = std::bit_cast<uint64_t>(value);
    uint32_t sign = uint32_t(bits >> 63) << (f.exponent_bits + f.mantissa_bits);
    if (value != value) return {Bits(f.nan)};
    int exponent = std::max(int(bits >> 52 & 0x7ff) - 1023, f.smallest_exponent());
    uint32_t code = ~0u;
    if (exponent <= f.bias() + 1) {
        double steps = std::fabs(value) * power_of_two(f.mantissa_bits - exponent);
        steps = toward_zero ? std::trunc(steps) : std::nearbyint(steps);
        code = (uint32_t(exponent - f.smallest_exponent()) << f.mantissa_bits) + uint32_t(steps);
    }
    if (code > f.largest()) {
        bool was_infinite = std::isinf(value);
        bool kept = saturate || !f.infinite || (toward_zero && !was_infinite);
        code = kept ? f.largest() : f.largest() + 1;
    }
    return {Bits(sign | code)};
}

template <class T>
double widen(T number) {
    constexpr Format f = format<T>;
    uint32_t magnitude = number.bits & ((1u << (f.exponent_bits + f.mantissa_bits)) - 1);
    double sign = number.bits >> (f.exponent_bits + f.mantissa_bits) ? -1.0 : 1.0;
    if (magnitude > f.largest()) return f.infinite && magnitude == f.largest() + 1 ? sign * INFINITY : NAN;
    int exponent = int(magnitude >> f.mantissa_bits);
    double fraction = magnitude & ((1u << f.mantissa_bits) - 1);
    if (exponent == 0) return sign * fraction * power_of_two(f.smallest_exponent() - f.mantissa_bits);
    return sign * (fraction + (1 << f.mantissa_bits)) * power_of_two(exponent - f.bias() - f.mantissa_bits);
}
inline double widen(float number) { return number; }
inline double widen(double number) { return number; }

inline float to_float(BFloat number) { return std::bit_cast<float>(uint32_t(number.bits) << 16); }

// A float to the nearest number, without branches.
inline BFloat to_bfloat(float value) {
    uint32_t bits = std::bit_cast<uint32_t>(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded)};
}

// A sum whose last bit is set if it is not exact: rounded once more, to fewer bits, it becomes the nearest number.
inline double odd_sum(double a, double b) {
    double sum = a + b, taken = sum - a;
    double error = (a - (sum - taken)) + (b - taken);
    if (error == 0 || !std::isfinite(sum)) return sum;
    auto bits = std::bit_cast<int64_t>(sum);
    if ((bits & 1) == 0) bits += (error > 0) == (sum > 0) ? 1 : -1;
    return std::bit_cast<double>(bits);
}

}  // namespace software_gpu
