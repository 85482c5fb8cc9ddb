// Elements of matrices, and the parts of a matrix that a thread holds.
#pragma once

#include <bit>
#include <cstring>
#include <optional>
#include <string_view>

#include "formats.h"
#include "tensor.h"

namespace software_gpu {

inline std::optional<Element> element_named(std::string_view name) {
    constexpr std::string_view names[] = {"f16", "bf16", "tf32", "e4m3", "e5m2", "s8", "u8", "f32", "s32"};
    for (int at = 0; at < 9; at++)
        if (names[at] == name) return Element(at);
    return {};
}

constexpr int bytes_of(Element element) {
    if (element == Element::f16 || element == Element::bf16) return 2;
    return element == Element::tf32 || element == Element::f32 || element == Element::s32 ? 4 : 1;
}
constexpr bool is_integer(Element element) { return element == Element::s8 || element == Element::u8; }

// What the bits of a factor stand for; of tf32 the last 13 are not looked at.
inline float value_of(Element element, uint32_t bits) {
    switch (element) {
        case Element::f16: return float(widen(Half{uint16_t(bits)}));
        case Element::bf16: return to_float({uint16_t(bits)});
        case Element::tf32: return std::bit_cast<float>(bits & 0xffffe000);
        case Element::e4m3: return float(widen(E4m3{uint8_t(bits)}));
        case Element::e5m2: return float(widen(E5m2{uint8_t(bits)}));
        case Element::s8: return float(int8_t(bits));
        case Element::u8: return float(uint8_t(bits));
        default: return std::bit_cast<float>(bits);
    }
}

// Register r of thread t holds elements of a factor side by side along k: for a of rows r % 2 * 8 + t / 4, for b of
// column t / 4 (of which each register has one more part of k).
template <class Use>
void for_each_of_a(Element element, int k, Use use) {  // use(register, thread, shift, row, column)
    int each = 4 / bytes_of(element), bits = 8 * bytes_of(element);
    for (int r = 0; r < k / (4 * each) * 2; r++)
        for (int t = 0; t < 32; t++)
            for (int i = 0; i < each; i++) use(r, t, bits * i, t / 4 + r % 2 * 8, t % 4 * each + i + r / 2 * 4 * each);
}
template <class Use>
void for_each_of_b(Element element, int k, Use use) {  // use(register, thread, shift, row, column)
    int each = 4 / bytes_of(element), bits = 8 * bytes_of(element);
    for (int r = 0; r < k / (4 * each); r++)
        for (int t = 0; t < 32; t++)
            for (int i = 0; i < each; i++) use(r, t, bits * i, t % 4 * each + i + r * 4 * each, t / 4);
}
// Of 16 rows of accumulators with n columns.
template <class Use>
void for_each_of_c(Element element, int n, Use use) {  // use(register, thread, shift, row, column)
    for (int at = 0; at < n / 2; at++)                 // 4 elements of each 8 columns
        for (int t = 0; t < 32; t++) {
            int row = t / 4 + at % 4 / 2 * 8, column = at / 4 * 8 + t % 4 * 2 + at % 2;
            element == Element::f16 ? use(at / 2, t, at % 2 * 16, row, column) : use(at, t, 0, row, column);
        }
}

// Accumulators: fp32 and fp16 as float, s32 as it is.
template <class T>
T accumulator(Element element, uint32_t bits) {
    if constexpr (std::is_same_v<T, int32_t>) return int32_t(bits);
    else return element == Element::f16 ? float(widen(Half{uint16_t(bits)})) : std::bit_cast<float>(bits);
}
template <class T>
void put_accumulator(Element element, uint32_t& bits, int shift, T value) {
    if constexpr (std::is_same_v<T, int32_t>) bits = uint32_t(value);
    else if (element == Element::f16) bits = (bits & ~(0xffffu << shift)) | uint32_t(narrow<Half>(value).bits) << shift;
    else bits = std::bit_cast<uint32_t>(value);
}

}  // namespace software_gpu
