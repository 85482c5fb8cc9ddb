// Floats of 32 and 64 bits. What a GPU approximates is exact here, rounded once.
#include <bit>
#include <cmath>
#include <cstdint>

#include "families.h"

namespace software_gpu {
namespace {

float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
float saturated(float x) { return x > 0 ? std::fmin(x, 1.0f) : 0.0f; }

template <class F, bool ftz, bool sat>
struct Modified {
    template <class... T>
    float operator()(T... x) const {
        float result = F{}((ftz ? flushed(x) : x)...);
        if constexpr (ftz) result = flushed(result);
        if constexpr (sat) result = saturated(result);
        return result;
    }
};

template <class F, class... S>
Operation modified(const Opcode& opcode) {
    bool ftz = opcode.has("ftz"), sat = opcode.has("sat");
    if (ftz && sat) return each<Modified<F, true, true>, float, S...>();
    if (ftz) return each<Modified<F, true, false>, float, S...>();
    if (sat) return each<Modified<F, false, true>, float, S...>();
    return each<Modified<F, false, false>, float, S...>();
}
template <class F>
Operation unary(const Opcode& opcode, F) {
    return modified<F, float>(opcode);
}
template <class F>
Operation binary(const Opcode& opcode, F) {
    return modified<F, float, float>(opcode);
}

template <class T>
T not_a_number() {
    if constexpr (sizeof(T) == 4) return std::bit_cast<float>(0x7fffffffu);
    else return std::bit_cast<double>(0x7fffffffffffffffull);
}

// Which of two is taken: a number before a NaN, and +0 is greater than -0.
template <class T>
T greatest(T a, T b) {
    T chosen = a > b || (a == b && !std::signbit(a)) ? a : b;
    chosen = b != b ? a : chosen;
    chosen = a != a ? b : chosen;
    return chosen != chosen ? not_a_number<T>() : chosen;
}
template <class T>
T least(T a, T b) {
    return -greatest(-a, -b);
}
template <class T>
T or_nan(T a, T b, T chosen) {
    return a != a || b != b ? not_a_number<T>() : chosen;
}

float with_both_signs(float a, float b, float (*chosen)(float, float)) {
    uint32_t sign = (std::bit_cast<uint32_t>(a) ^ std::bit_cast<uint32_t>(b)) & 0x80000000;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(chosen(std::fabs(a), std::fabs(b))) | sign);
}

// Divisors beyond 2^126 make div.approx give zero.
float approximate_quotient(float a, float b) {
    float size = std::fabs(b);
    bool lost = size > 0x1p126f && size <= 3.4028235e38f;
    return lost ? (std::isinf(a) ? NAN : std::copysign(0.0f, a) * std::copysign(1.0f, b)) : a / b;
}

Found find_f32(const Opcode& o) {
    auto name = o.name;
    if (o.only({"ftz"})) {
        if (name == "neg") return unary(o, [](float x) { return -x; });
        if (name == "abs") return unary(o, [](float x) { return std::fabs(x); });
        if (name == "min") return binary(o, [](float a, float b) { return least(a, b); });
        if (name == "max") return binary(o, [](float a, float b) { return greatest(a, b); });
        if (name == "copysign") return binary(o, [](float a, float b) { return std::copysign(b, a); });
    }
    if (o.only({"ftz", "NaN"}) && o.has("NaN")) {
        if (name == "min") return binary(o, [](float a, float b) { return or_nan(a, b, least(a, b)); });
        if (name == "max") return binary(o, [](float a, float b) { return or_nan(a, b, greatest(a, b)); });
    }
    if (o.only({"xorsign", "abs"}) && o.parts.size() == 3) {  // of the magnitudes, with the product's sign
        if (name == "min") return binary(o, [](float a, float b) { return with_both_signs(a, b, least<float>); });
        if (name == "max") return binary(o, [](float a, float b) { return with_both_signs(a, b, greatest<float>); });
    }
    if (o.only({"ftz", "approx"}) && o.has("approx")) {
        if (name == "ex2") return unary(o, [](float x) { return std::exp2(x); });
        if (name == "lg2") return unary(o, [](float x) { return std::log2(x); });
        if (name == "sin") return unary(o, [](float x) { return std::sin(x); });
        if (name == "cos") return unary(o, [](float x) { return std::cos(x); });
        if (name == "tanh") return unary(o, [](float x) { return std::tanh(x); });
        if (name == "rsqrt") return unary(o, [](float x) { return float(1 / std::sqrt(double(x))); });
        if (name == "div") return binary(o, [](float a, float b) { return approximate_quotient(a, b); });
    }
    if (o.only({"ftz", "approx", "full", "rn"}) && o.parts.size() > 1) {
        if (name == "div" && !o.has("approx")) return binary(o, [](float a, float b) { return a / b; });
        if (o.has("full")) return {};
        if (name == "rcp") return unary(o, [](float x) { return 1 / x; });
        if (name == "sqrt") return unary(o, [](float x) { return std::sqrt(x); });
    }
    return {};
}

Found find_f64(const Opcode& o) {
    auto name = o.name;
    if (o.only({})) {
        if (name == "neg") return each([](double x) { return -x; });
        if (name == "abs") return each([](double x) { return std::fabs(x); });
        if (name == "min") return each([](double a, double b) { return least(a, b); });
        if (name == "max") return each([](double a, double b) { return greatest(a, b); });
        if (name == "copysign") return each([](double a, double b) { return std::copysign(b, a); });
    }
    if (o.only({"rn"})) {
        if (name == "add") return each([](double a, double b) { return a + b; });
        if (name == "sub") return each([](double a, double b) { return a - b; });
        if (name == "mul") return each([](double a, double b) { return a * b; });
        if (name == "fma" || name == "mad") return each([](double a, double b, double c) { return std::fma(a, b, c); });
        if (name == "div") return each([](double a, double b) { return a / b; });
        if (name == "rcp") return each([](double x) { return 1 / x; });
        if (name == "sqrt") return each([](double x) { return std::sqrt(x); });
    }
    return {};
}

}  // namespace

Found find_float(const Opcode& opcode) {
    if (opcode.name == "cvt" || opcode.name == "setp") return {};
    if (opcode.at(-1) == "f32") return find_f32(opcode);
    if (opcode.at(-1) == "f64") return find_f64(opcode);
    return {};
}

}  // namespace software_gpu
