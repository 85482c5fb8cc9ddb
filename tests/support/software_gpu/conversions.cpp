// cvt.
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "families.h"
#include "formats.h"

namespace software_gpu {
namespace {

// What registers hold of a type: integers of 8 bits lie in 16.
template <class T>
struct In {
    using type = T;
};
template <>
struct In<int8_t> {
    using type = int16_t;
};
template <>
struct In<uint8_t> {
    using type = uint16_t;
};
template <>
struct In<Half> {
    using type = uint16_t;
};
template <>
struct In<BFloat> {
    using type = uint16_t;
};
template <class T>
using Register = typename In<T>::type;

template <class T>
struct Tag {
    using type = T;
};

template <class F>
Found with_integer(std::string_view name, F use) {
    if (name == "s8") return use(Tag<int8_t>());
    if (name == "u8") return use(Tag<uint8_t>());
    if (name == "s16") return use(Tag<int16_t>());
    if (name == "u16") return use(Tag<uint16_t>());
    if (name == "s32") return use(Tag<int32_t>());
    if (name == "u32") return use(Tag<uint32_t>());
    if (name == "s64") return use(Tag<int64_t>());
    if (name == "u64") return use(Tag<uint64_t>());
    return {};
}
template <class F>
Found with_float(std::string_view name, F use) {
    if (name == "f16") return use(Tag<Half>());
    if (name == "bf16") return use(Tag<BFloat>());
    if (name == "f32") return use(Tag<float>());
    if (name == "f64") return use(Tag<double>());
    return {};
}

template <class D, class S, bool sat>
struct Integers {
    Register<D> operator()(Register<S> given) const {
        S x = S(given);
        if constexpr (sat) {
            using Limits = std::numeric_limits<D>;
            if (std::cmp_less(x, Limits::min())) return Limits::min();
            if (std::cmp_greater(x, Limits::max())) return Limits::max();
        }
        return D(x);
    }
};

template <class T>
double wide(Register<T> x) {
    if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat>) return widen(T{x});
    else return x;
}

template <class T>
Register<T> rounded(double x, bool toward_zero = false, bool finite = false) {
    if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat>) return narrow<T>(x, toward_zero, finite).bits;
    else if constexpr (std::is_same_v<T, float>) {
        float found = float(x);
        bool beyond = std::fabs(double(found)) > std::fabs(x) && !std::isinf(x);
        if (toward_zero && beyond) found = std::nextafter(found, 0.0f);
        if (finite && std::isinf(found)) found = std::copysign(3.4028235e38f, found);
        return found;
    } else return x;
}

template <class D, class S>
struct FromInteger {
    Register<D> operator()(Register<S> given) const {
        S x = S(given);
        if constexpr (std::is_same_v<D, float> || std::is_same_v<D, double>) return D(x);
        else if constexpr (sizeof(S) == 8) return rounded<D>(odd_sum(double(x >> 11) * 2048, double(x & 2047)));
        else return rounded<D>(double(x));
    }
};

enum class Whole { nearest, zero, down, up };

template <Whole whole>
double to_whole(double x) {
    if constexpr (whole == Whole::nearest) return std::nearbyint(x);
    else if constexpr (whole == Whole::zero) return std::trunc(x);
    else if constexpr (whole == Whole::down) return std::floor(x);
    else return std::ceil(x);
}
double flushed(double x) { return std::fabs(x) < 0x1p-126 ? std::copysign(0.0, x) : x; }

template <class D, class S, Whole whole, bool ftz>
struct ToInteger {
    Register<D> operator()(Register<S> given) const {
        using Limits = std::numeric_limits<D>;
        double x = wide<S>(given);
        if (ftz) x = flushed(x);
        if (x != x) {
            bool zero = !std::is_same_v<S, double> && sizeof(D) < 8;
            return zero ? 0 : D(uint64_t(1) << (8 * sizeof(D) - 1));
        }
        x = to_whole<whole>(x);
        if (x <= double(Limits::min())) return Limits::min();
        if (x >= double(Limits::max())) return Limits::max();
        return D(x);
    }
};

template <class S, Whole whole, bool ftz>
struct ToWhole {
    Register<S> operator()(Register<S> x) const {
        double found = to_whole<whole>(ftz ? flushed(wide<S>(x)) : wide<S>(x));
        return rounded<S>(found);
    }
};

enum class Finish { none, relu, sat, satfinite, ftz };

template <Finish finish>
double finished(double x) {
    if constexpr (finish == Finish::relu) return x > 0 || x != x ? x : 0.0;
    else if constexpr (finish == Finish::sat) return x > 0 ? std::fmin(x, 1.0) : 0.0;
    else return x;
}

template <class D, class S, bool zero, Finish finish>
struct Floats {
    Register<D> operator()(Register<S> given) const {
        if constexpr (finish == Finish::none && std::is_same_v<S, BFloat> && std::is_same_v<D, float>)
            return to_float({given});
        else if constexpr (finish == Finish::none && !zero && std::is_same_v<D, BFloat> && std::is_same_v<S, float>)
            return to_bfloat(given).bits;
        else {
            double x = wide<S>(given);
            if (finish == Finish::ftz) x = flushed(x);
            auto found = rounded<D>(finished<finish>(x), zero, finish == Finish::satfinite);
            if constexpr (finish == Finish::ftz && std::is_same_v<D, float>) found = float(flushed(found));
            return found;
        }
    }
};

// Two floats to the halves of a register: the first source becomes the upper.
template <class D, bool zero, Finish finish>
struct Pair {
    uint32_t half(float x) const {
        if constexpr (finish == Finish::none && !zero && std::is_same_v<D, BFloat>) return to_bfloat(x).bits;
        else return narrow<D>(finished<finish>(x), zero, finish == Finish::satfinite).bits;
    }
    uint32_t operator()(float upper, float lower) const { return half(upper) << 16 | half(lower); }
};

template <class D, bool relu>
struct Bytes {
    static uint16_t byte(double x) { return narrow<D>(relu ? finished<Finish::relu>(x) : x, false, true).bits; }
    uint16_t operator()(float upper, float lower) const { return byte(upper) << 8 | byte(lower); }
    uint16_t operator()(uint32_t halves) const {
        return byte(widen(Half{uint16_t(halves >> 16)})) << 8 | byte(widen(Half{uint16_t(halves)}));
    }
};
template <class S, bool relu>
struct FromBytes {
    static uint32_t half(uint8_t code) {
        double x = widen(S{code});
        return narrow<Half>(relu ? finished<Finish::relu>(x) : x).bits;
    }
    uint32_t operator()(uint16_t codes) const { return half(codes >> 8) << 16 | half(codes & 0xff); }
};

uint32_t to_tf32(uint32_t bits, uint32_t added) {
    bool special = (bits & 0x7f800000) == 0x7f800000;
    return special ? bits : (bits + added) & 0xffffe000;
}

template <class Use>
Found with_finish(const Opcode& o, Use use) {
    int count = o.has("relu") + o.has("sat") + o.has("satfinite") + o.has("ftz");
    if (count > 1) return {};
    using enum Finish;
    if (o.has("relu")) return use(std::integral_constant<Finish, relu>());
    if (o.has("sat")) return use(std::integral_constant<Finish, sat>());
    if (o.has("satfinite")) return use(std::integral_constant<Finish, satfinite>());
    if (o.has("ftz")) return use(std::integral_constant<Finish, ftz>());
    return use(std::integral_constant<Finish, none>());
}
template <class Use>
Found with_whole(const Opcode& o, Use use) {
    auto with_flush = [&](auto whole) -> Found {
        constexpr Whole way = decltype(whole)::value;
        return o.has("ftz") ? use.template operator()<way, true>() : use.template operator()<way, false>();
    };
    if (o.has("rni")) return with_flush(std::integral_constant<Whole, Whole::nearest>());
    if (o.has("rzi")) return with_flush(std::integral_constant<Whole, Whole::zero>());
    if (o.has("rmi")) return with_flush(std::integral_constant<Whole, Whole::down>());
    if (o.has("rpi")) return with_flush(std::integral_constant<Whole, Whole::up>());
    return {};
}

Found find_from_integer(const Opcode& o) {
    return with_integer(o.at(-1), [&](auto source) -> Found {
        using S = typename decltype(source)::type;
        Found found = with_integer(o.at(-2), [&](auto target) -> Found {
            using D = typename decltype(target)::type;
            if (!o.only({"sat"}, 2)) return {};
            return o.has("sat") ? each<Integers<D, S, true>, Register<D>, Register<S>>()
                                : each<Integers<D, S, false>, Register<D>, Register<S>>();
        });
        if (found) return found;
        return with_float(o.at(-2), [&](auto target) -> Found {
            using D = typename decltype(target)::type;
            if (!o.only({"rn"}, 2) || !o.has("rn")) return {};
            return each<FromInteger<D, S>, Register<D>, Register<S>>();
        });
    });
}

Found find_from_float(const Opcode& o) {
    return with_float(o.at(-1), [&](auto source) -> Found {
        using S = typename decltype(source)::type;
        Found found = with_integer(o.at(-2), [&](auto target) -> Found {
            using D = typename decltype(target)::type;
            if (!o.only({"rni", "rzi", "rmi", "rpi", "ftz", "sat"}, 2)) return {};
            return with_whole(o, [&]<Whole whole, bool ftz>() -> Found {
                return each<ToInteger<D, S, whole, ftz>, Register<D>, Register<S>>();
            });
        });
        if (found) return found;
        if (o.at(-1) == o.at(-2) && o.only({"rni", "rzi", "rmi", "rpi", "ftz"}, 2) && o.parts.size() > 2)
            found = with_whole(o, [&]<Whole whole, bool ftz>() -> Found {
                return each<ToWhole<S, whole, ftz>, Register<S>, Register<S>>();
            });
        if (found) return found;
        return with_float(o.at(-2), [&](auto target) -> Found {
            using D = typename decltype(target)::type;
            if (!o.only({"rn", "rz", "relu", "sat", "satfinite", "ftz"}, 2)) return {};
            return with_finish(o, [&](auto finish) -> Found {
                constexpr Finish way = decltype(finish)::value;
                return o.has("rz") ? each<Floats<D, S, true, way>, Register<D>, Register<S>>()
                                   : each<Floats<D, S, false, way>, Register<D>, Register<S>>();
            });
        });
    });
}

template <class D>
Found find_pair(const Opcode& o) {
    if (!o.only({"rn", "rz", "relu", "satfinite"}, 2) || o.parts.size() < 3) return {};
    return with_finish(o, [&](auto finish) -> Found {
        constexpr Finish way = decltype(finish)::value;
        return o.has("rz") ? each<Pair<D, true, way>, uint32_t, float, float>()
                           : each<Pair<D, false, way>, uint32_t, float, float>();
    });
}

template <class D>
Found find_bytes(const Opcode& o) {
    if (!o.only({"rn", "satfinite", "relu"}, 2) || !o.has("rn") || !o.has("satfinite")) return {};
    bool relu = o.has("relu");
    if (o.at(-1) == "f32")
        return relu ? each<Bytes<D, true>, uint16_t, float, float>() : each<Bytes<D, false>, uint16_t, float, float>();
    if (o.at(-1) == "f16x2")
        return relu ? each<Bytes<D, true>, uint16_t, uint32_t>() : each<Bytes<D, false>, uint16_t, uint32_t>();
    return {};
}

template <class S>
Found find_from_bytes(const Opcode& o) {
    if (!o.only({"rn", "relu"}, 2) || !o.has("rn") || o.at(-2) != "f16x2") return {};
    return o.has("relu") ? each<FromBytes<S, true>, uint32_t, uint16_t>()
                         : each<FromBytes<S, false>, uint32_t, uint16_t>();
}

Found find_tf32(const Opcode& o) {
    if (o.parts.size() != 3 || o.at(-1) != "f32") return {};
    if (o.at(0) == "rna") return each([](uint32_t x) { return to_tf32(x, 0x1000); });
    if (o.at(0) == "rn") return each([](uint32_t x) { return to_tf32(x, 0xfff + (x >> 13 & 1)); });
    if (o.at(0) == "rz") return each([](uint32_t x) { return to_tf32(x, 0); });
    return {};
}

}  // namespace

Found find_conversion(const Opcode& o) {
    if (o.name != "cvt" || o.parts.size() < 2) return {};
    auto target = o.at(-2), source = o.at(-1);
    if (target == "tf32") return find_tf32(o);
    if (target == "f16x2" && source == "f32") return find_pair<Half>(o);
    if (target == "bf16x2" && source == "f32") return find_pair<BFloat>(o);
    if (target == "e4m3x2") return find_bytes<E4m3>(o);
    if (target == "e5m2x2") return find_bytes<E5m2>(o);
    if (source == "e4m3x2") return find_from_bytes<E4m3>(o);
    if (source == "e5m2x2") return find_from_bytes<E5m2>(o);
    Found found = find_from_integer(o);
    return found ? found : find_from_float(o);
}

}  // namespace software_gpu
