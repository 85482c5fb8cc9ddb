// Instructions that move bits.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "families.h"

namespace software_gpu {
namespace {

uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t source = a | uint64_t(b) << 32;
    uint32_t found = 0;
    for (int byte = 0; byte < 4; byte++) {
        uint32_t chosen = selector >> (4 * byte) & 15;
        uint32_t value = uint32_t(source >> (8 * (chosen & 7))) & 0xff;
        uint32_t sign = value & 0x80 ? 0xff : 0;
        found |= (chosen & 8 ? sign : value) << (8 * byte);
    }
    return found;
}

uint32_t table(uint32_t a, uint32_t b, uint32_t c, uint32_t results) {
    uint32_t found = 0;
    for (uint32_t at = 0; at < 8; at++) {
        uint32_t here = (at & 4 ? a : ~a) & (at & 2 ? b : ~b) & (at & 1 ? c : ~c);
        found |= here & (0 - (results >> at & 1));
    }
    return found;
}

template <class U>
U low_bits(uint32_t count) {
    constexpr uint32_t width = 8 * sizeof(U);
    return count >= width ? ~U(0) : (U(1) << count) - 1;
}

// `length` bits from `start` on; signed types have the highest of them, or of the source, above.
template <class T>
T extracted(T value, uint32_t start, uint32_t length) {
    using U = std::make_unsigned_t<T>;
    constexpr uint32_t width = 8 * sizeof(T);
    start &= 0xff, length &= 0xff;
    U mask = low_bits<U>(length), found = start >= width ? 0 : (U(value) >> start) & mask;
    if (std::is_signed_v<T> && length > 0) {
        uint32_t last = std::min(start + length - 1, width - 1);
        if (U(value) >> last & 1) found |= start >= width ? ~U(0) : ~(low_bits<U>(last - start + 1));
    }
    return T(found);
}

template <class U>
U inserted(U field, U value, uint32_t start, uint32_t length) {
    constexpr uint32_t width = 8 * sizeof(U);
    start &= 0xff, length &= 0xff;
    if (start >= width) return value;
    U mask = low_bits<U>(length) << start;
    return (value & ~mask) | (field << start & mask);
}

template <class U>
U reversed(U value) {
    U found = 0;
    for (uint32_t at = 0; at < 8 * sizeof(U); at++) found |= (value >> at & 1) << (8 * sizeof(U) - 1 - at);
    return found;
}

// The place of the highest bit that is not the sign; all ones if there is none.
template <class T>
uint32_t highest(T value) {
    using U = std::make_unsigned_t<T>;
    U bits = value < 0 ? ~U(value) : U(value);
    return bits ? 8 * sizeof(U) - 1 - std::countl_zero(bits) : ~0u;
}

template <class A, class B>
uint32_t dot(uint32_t a, uint32_t b, uint32_t c) {
    for (int byte = 0; byte < 4; byte++) c += uint32_t(int(A(a >> (8 * byte))) * int(B(b >> (8 * byte))));
    return c;
}

template <class U>
Found find_field(std::string_view name) {
    using S = std::make_signed_t<U>;
    if (name == "bfe.u") return each([](U a, uint32_t b, uint32_t c) { return extracted<U>(a, b, c); });
    if (name == "bfe.s") return each([](S a, uint32_t b, uint32_t c) { return extracted<S>(a, b, c); });
    if (name == "bfi.b") return each([](U a, U b, uint32_t c, uint32_t d) { return inserted<U>(a, b, c, d); });
    if (name == "brev.b") return each([](U a) { return reversed<U>(a); });
    if (name == "popc.b") return each([](U a) { return uint32_t(std::popcount(a)); });
    if (name == "clz.b") return each([](U a) { return uint32_t(std::countl_zero(a)); });
    if (name == "bfind.u") return each([](U a) { return highest<U>(a); });
    if (name == "bfind.s") return each([](S a) { return highest<S>(a); });
    return {};
}

Found find_funnel(const Opcode& o) {
    if (o.parts.size() != 3 || o.at(2) != "b32") return {};
    auto both = [](uint32_t low, uint32_t high) { return low | uint64_t(high) << 32; };
    using Both = decltype(both);
    if (o.at(0) == "l" && o.at(1) == "wrap")
        return each([](uint32_t a, uint32_t b, uint32_t c) { return uint32_t(Both{}(a, b) << (c & 31) >> 32); });
    if (o.at(0) == "r" && o.at(1) == "wrap")
        return each([](uint32_t a, uint32_t b, uint32_t c) { return uint32_t(Both{}(a, b) >> (c & 31)); });
    if (o.at(0) == "l" && o.at(1) == "clamp")
        return each(
            [](uint32_t a, uint32_t b, uint32_t c) { return uint32_t(Both{}(a, b) << std::min(c, 32u) >> 32); });
    if (o.at(0) == "r" && o.at(1) == "clamp")
        return each([](uint32_t a, uint32_t b, uint32_t c) { return uint32_t(Both{}(a, b) >> std::min(c, 32u)); });
    return {};
}

Found find_dot(const Opcode& o) {
    if (o.parts.size() != 2) return {};
    bool first = o.at(0) == "s32", second = o.at(1) == "s32";
    if ((!first && o.at(0) != "u32") || (!second && o.at(1) != "u32")) return {};
    if (first && second) return each([](uint32_t a, uint32_t b, uint32_t c) { return dot<int8_t, int8_t>(a, b, c); });
    if (first) return each([](uint32_t a, uint32_t b, uint32_t c) { return dot<int8_t, uint8_t>(a, b, c); });
    if (second) return each([](uint32_t a, uint32_t b, uint32_t c) { return dot<uint8_t, int8_t>(a, b, c); });
    return each([](uint32_t a, uint32_t b, uint32_t c) { return dot<uint8_t, uint8_t>(a, b, c); });
}

}  // namespace

Found find_bits(const Opcode& o) {
    if (o.name == "shf") return find_funnel(o);
    if (o.name == "dp4a") return find_dot(o);
    if (o.parts.size() != 1 || o.at(0).size() != 3) return {};
    auto type = o.at(0);
    if (o.name == "prmt" && type == "b32")
        return each([](uint32_t a, uint32_t b, uint32_t c) { return permuted(a, b, c); });
    if (o.name == "lop3" && type == "b32")
        return each([](uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return table(a, b, c, d); });
    auto name = std::string(o.name) + "." + std::string(type.substr(0, 1));
    if (type.substr(1) == "32") return find_field<uint32_t>(name);
    return type.substr(1) == "64" ? find_field<uint64_t>(name) : Found();
}

}  // namespace software_gpu
