// Arithmetic on f16, bf16 and pairs of them: each result is rounded once.
#include <cmath>
#include <cstdint>

#include "families.h"
#include "formats.h"

namespace software_gpu {
namespace {

// A function of one number becomes one of both halves of registers.
template <class F, class T>
struct Pairs {
    template <class... S>
    uint32_t operator()(S... x) const {
        uint32_t low = F{}(T{uint16_t(x)}...).bits, high = F{}(T{uint16_t(x >> 16)}...).bits;
        return low | high << 16;
    }
};
template <class F, class T>
struct Singles {
    template <class... S>
    uint16_t operator()(S... x) const {
        return F{}(T{x}...).bits;
    }
};

template <class T>
T flushed(T x) {
    constexpr Format f = format<T>;
    return x.bits >> f.mantissa_bits & ((1 << f.exponent_bits) - 1) ? x : T{uint16_t(x.bits & 0x8000)};
}

enum class Finish { none, relu, sat, ftz };

// What is computed in double, finished and rounded to T.
template <class F, class T, Finish finish>
struct Rounded {
    template <class... S>
    T operator()(S... x) const {
        double wide = F{}(widen(finish == Finish::ftz ? flushed(x) : x)...);
        if (finish == Finish::relu) wide = wide > 0 || wide != wide ? wide : 0.0;
        if (finish == Finish::sat) wide = wide > 0 ? std::fmin(wide, 1.0) : 0.0;
        T found = narrow<T>(wide);
        return finish == Finish::ftz ? flushed(found) : found;
    }
};

template <class F, class T, int arguments>
Operation shaped(bool pairs) {
    if constexpr (arguments == 1)
        return pairs ? each<Pairs<F, T>, uint32_t, uint32_t>() : each<Singles<F, T>, uint16_t, uint16_t>();
    else if constexpr (arguments == 2)
        return pairs ? each<Pairs<F, T>, uint32_t, uint32_t, uint32_t>()
                     : each<Singles<F, T>, uint16_t, uint16_t, uint16_t>();
    else
        return pairs ? each<Pairs<F, T>, uint32_t, uint32_t, uint32_t, uint32_t>()
                     : each<Singles<F, T>, uint16_t, uint16_t, uint16_t, uint16_t>();
}

template <class T, int arguments, class F>
Operation rounded(const Opcode& o, bool pairs, F) {
    if (o.has("relu")) return shaped<Rounded<F, T, Finish::relu>, T, arguments>(pairs);
    if (o.has("sat")) return shaped<Rounded<F, T, Finish::sat>, T, arguments>(pairs);
    if (o.has("ftz")) return shaped<Rounded<F, T, Finish::ftz>, T, arguments>(pairs);
    return shaped<Rounded<F, T, Finish::none>, T, arguments>(pairs);
}

template <class T, bool greatest, bool nan_wins>
struct Extreme {
    T operator()(T a, T b) const {
        double x = widen(a), y = widen(b);
        if (x != x || y != y) {
            if (nan_wins || (x != x && y != y)) return {uint16_t(format<T>.nan)};
            return x != x ? b : a;
        }
        bool first = x == y ? std::signbit(x) != greatest : (x > y) == greatest;
        return first ? a : b;
    }
};
template <class T>
struct Negated {
    T operator()(T a) const { return {uint16_t(a.bits ^ 0x8000)}; }
};
template <class T>
struct Absolute {
    T operator()(T a) const { return {uint16_t(a.bits & 0x7fff)}; }
};

template <class T>
Found find_of(const Opcode& o, bool pairs) {
    auto name = o.name;
    auto real = [](auto function) { return function; };
    if (o.parts.size() > 3) return {};
    if (o.only({"rn", "relu", "sat", "ftz"})) {
        if (name == "add") return rounded<T, 2>(o, pairs, real([](double a, double b) { return odd_sum(a, b); }));
        if (name == "sub") return rounded<T, 2>(o, pairs, real([](double a, double b) { return odd_sum(a, -b); }));
        if (name == "mul") return rounded<T, 2>(o, pairs, real([](double a, double b) { return a * b; }));
        if (name == "fma")
            return rounded<T, 3>(o, pairs, real([](double a, double b, double c) { return odd_sum(a * b, c); }));
    }
    if (o.only({"approx", "ftz"}) && o.has("approx")) {
        if (name == "ex2") return rounded<T, 1>(o, pairs, real([](double x) { return std::exp2(x); }));
        if (name == "tanh") return rounded<T, 1>(o, pairs, real([](double x) { return std::tanh(x); }));
    }
    if (o.only({"NaN"})) {
        bool nan = o.has("NaN");
        if (name == "min" && nan) return shaped<Extreme<T, false, true>, T, 2>(pairs);
        if (name == "min") return shaped<Extreme<T, false, false>, T, 2>(pairs);
        if (name == "max" && nan) return shaped<Extreme<T, true, true>, T, 2>(pairs);
        if (name == "max") return shaped<Extreme<T, true, false>, T, 2>(pairs);
    }
    if (o.only({})) {
        if (name == "neg") return shaped<Negated<T>, T, 1>(pairs);
        if (name == "abs") return shaped<Absolute<T>, T, 1>(pairs);
    }
    return {};
}

}  // namespace

Found find_small_float(const Opcode& opcode) {
    if (opcode.name == "cvt") return {};
    auto type = opcode.at(-1);
    if (type == "f16" || type == "f16x2") return find_of<Half>(opcode, type == "f16x2");
    if (type == "bf16" || type == "bf16x2") return find_of<BFloat>(opcode, type == "bf16x2");
    return {};
}

}  // namespace software_gpu
