#include "arithmetic.h"

#include <cmath>
#include <map>
#include <string>
#include <type_traits>

namespace software_gpu {
namespace {

using Table = std::map<std::string, Operation, std::less<>>;

template <class T>
const T* in_as(const void* const* in, int place) {
    return static_cast<const T*>(in[place]);
}

// Loops over threads: F is a type with one static function, so that each loop is compiled for it.
template <class F, class Out, class A>
void unary(size_t n, void* const* out, const void* const* in) {
    auto* __restrict result = static_cast<Out*>(out[0]);
    const A* a = in_as<A>(in, 0);
    for (size_t i = 0; i < n; i++) result[i] = F::of(a[i]);
}
template <class F, class Out, class A, class B>
void binary(size_t n, void* const* out, const void* const* in) {
    auto* __restrict result = static_cast<Out*>(out[0]);
    const A* a = in_as<A>(in, 0);
    const B* b = in_as<B>(in, 1);
    for (size_t i = 0; i < n; i++) result[i] = F::of(a[i], b[i]);
}
template <class F, class Out, class A, class B, class C>
void ternary(size_t n, void* const* out, const void* const* in) {
    auto* __restrict result = static_cast<Out*>(out[0]);
    const A* a = in_as<A>(in, 0);
    const B* b = in_as<B>(in, 1);
    const C* c = in_as<C>(in, 2);
    for (size_t i = 0; i < n; i++) result[i] = F::of(a[i], b[i], c[i]);
}

template <class T>
constexpr uint8_t bytes = std::is_same_v<T, bool> ? 1 : sizeof(T);

template <class F, class Out, class A>
Operation one() {
    return {unary<F, Out, A>, 1, 1, {bytes<Out>}, {bytes<A>}};
}
template <class F, class Out, class A, class B = A>
Operation two() {
    return {binary<F, Out, A, B>, 1, 2, {bytes<Out>}, {bytes<A>, bytes<B>}};
}
template <class F, class Out, class A, class B = A, class C = Out>
Operation three() {
    return {ternary<F, Out, A, B, C>, 1, 3, {bytes<Out>}, {bytes<A>, bytes<B>, bytes<C>}};
}

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
struct Move {
    static T of(T a) { return a; }
};
template <class T>
struct Add {
    static T of(T a, T b) { return T(Unsigned<T>(a) + Unsigned<T>(b)); }
};
template <class T>
struct Subtract {
    static T of(T a, T b) { return T(Unsigned<T>(a) - Unsigned<T>(b)); }
};
template <class T>
struct Negate {
    static T of(T a) { return T(-Unsigned<T>(a)); }
};
template <class T>
struct Absolute {
    static T of(T a) { return a < 0 ? T(-Unsigned<T>(a)) : a; }
};
template <class T>
struct Minimum {
    static T of(T a, T b) { return b < a ? b : a; }
};
template <class T>
struct Maximum {
    static T of(T a, T b) { return a < b ? b : a; }
};
template <class T>
struct MinimumRelu {
    static T of(T a, T b) { return Maximum<T>::of(Minimum<T>::of(a, b), 0); }
};
template <class T>
struct MaximumRelu {
    static T of(T a, T b) { return Maximum<T>::of(Maximum<T>::of(a, b), 0); }
};
template <class T>
struct Low {
    static T of(T a, T b) { return T(uint64_t(a) * uint64_t(b)); }
};
template <class T>
struct High {
    static T of(T a, T b) {
        if constexpr (sizeof(T) == 8)
            return T((std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>(a) * b) >> 64);
        else
            return T((std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>(a) * b) >> (8 * sizeof(T)));
    }
};
template <class T>
using Wider = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
    std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
template <class T>
struct Wide {
    static Wider<T> of(T a, T b) { return Wider<T>(a) * Wider<T>(b); }
};
template <class T>
struct LowAdd {
    static T of(T a, T b, T c) { return Add<T>::of(Low<T>::of(a, b), c); }
};
template <class T>
struct HighAdd {
    static T of(T a, T b, T c) { return Add<T>::of(High<T>::of(a, b), c); }
};
template <class T>
struct WideAdd {
    static Wider<T> of(T a, T b, Wider<T> c) { return Add<Wider<T>>::of(Wide<T>::of(a, b), c); }
};
template <class T>
struct Divide {  // what dividing by zero gives is not defined
    static T of(T a, T b) {
        if (b == 0) return T(-1);
        if (std::is_signed_v<T> && b == T(-1)) return Negate<T>::of(a);
        return T(a / b);
    }
};
template <class T>
struct Remainder {
    static T of(T a, T b) {
        if (b == 0) return a;
        if (std::is_signed_v<T> && b == T(-1)) return 0;
        return T(a % b);
    }
};
template <class T>
struct And {
    static T of(T a, T b) { return a & b; }
};
template <class T>
struct Or {
    static T of(T a, T b) { return a | b; }
};
template <class T>
struct Xor {
    static T of(T a, T b) { return a ^ b; }
};
template <class T>
struct Not {
    static T of(T a) { return T(~a); }
};
struct NotPredicate {
    static uint8_t of(uint8_t a) { return a ^ 1; }
};
template <class T>
struct ShiftLeft {  // amounts beyond the width count as the width
    static T of(T a, uint32_t by) { return by >= 8 * sizeof(T) ? T(0) : T(a << by); }
};
template <class T>
struct ShiftRight {
    static T of(T a, uint32_t by) {
        uint32_t most = 8 * sizeof(T) - 1;
        if (!std::is_signed_v<T> && by > most) return 0;
        return T(a >> (by > most ? most : by));
    }
};
template <class T>
struct Select {
    static T of(T a, T b, uint8_t c) { return c ? a : b; }
};
template <class T>
struct SumOfDifferences {
    static T of(T a, T b, T c) { return Add<T>::of(c, a < b ? b - a : a - b); }
};
template <class T>
struct Equal {
    static uint8_t of(T a, T b) { return a == b; }
};
template <class T>
struct NotEqual {
    static uint8_t of(T a, T b) { return a != b; }
};
template <class T>
struct Less {
    static uint8_t of(T a, T b) { return a < b; }
};
template <class T>
struct LessEqual {
    static uint8_t of(T a, T b) { return a <= b; }
};
template <class T>
struct Greater {
    static uint8_t of(T a, T b) { return a > b; }
};
template <class T>
struct GreaterEqual {
    static uint8_t of(T a, T b) { return a >= b; }
};
template <class Compare, class Combine, class T>
struct CombinedComparison {
    static uint8_t of(T a, T b, uint8_t c) { return Combine::of(Compare::of(a, b), c); }
};

template <class F, class T>
struct Halves {  // of a word, each by itself
    static uint32_t of(uint32_t a, uint32_t b) {
        return uint16_t(F::of(T(a), T(b))) | uint32_t(uint16_t(F::of(T(a >> 16), T(b >> 16)))) << 16;
    }
};

// Floats: results of add, mul and fma are rounded to nearest even as C++ does; .ftz makes zeros of subnormals.
inline float flushed(float a) { return std::fabs(a) < 0x1p-126f ? std::copysign(0.0f, a) : a; }
inline float saturated(float a) { return a > 0 ? (a < 1 ? a : 1.0f) : 0.0f; }  // a NaN gives zero
template <bool ftz, bool sat>
float finished(float a) {
    if (ftz) a = flushed(a);
    return sat ? saturated(a) : a;
}
template <bool ftz>
float taken(float a) {
    return ftz ? flushed(a) : a;
}
template <bool ftz, bool sat>
struct FloatAdd {
    static float of(float a, float b) { return finished<ftz, sat>(taken<ftz>(a) + taken<ftz>(b)); }
};
template <bool ftz, bool sat>
struct FloatSubtract {
    static float of(float a, float b) { return finished<ftz, sat>(taken<ftz>(a) - taken<ftz>(b)); }
};
template <bool ftz, bool sat>
struct FloatMultiply {
    static float of(float a, float b) { return finished<ftz, sat>(taken<ftz>(a) * taken<ftz>(b)); }
};
template <bool ftz, bool sat>
struct FloatFused {
    static float of(float a, float b, float c) {
        return finished<ftz, sat>(std::fma(taken<ftz>(a), taken<ftz>(b), taken<ftz>(c)));
    }
};

// With a carry: {result, carry out} of {a, b, (c,) carry in}.
template <bool carry_in, bool subtracts>
void carried(size_t n, void* const* out, const void* const* in) {
    auto* __restrict result = static_cast<uint32_t*>(out[0]);
    auto* __restrict carry = static_cast<uint8_t*>(out[1]);
    const uint32_t *a = in_as<uint32_t>(in, 0), *b = in_as<uint32_t>(in, 1);
    const uint8_t* given = carry_in ? in_as<uint8_t>(in, 2) : nullptr;
    for (size_t i = 0; i < n; i++) {
        uint64_t extra = carry_in ? given[i] : 0;
        uint64_t total = subtracts ? uint64_t(a[i]) - b[i] - extra : uint64_t(a[i]) + b[i] + extra;
        result[i] = uint32_t(total);
        carry[i] = (total >> 32) & 1;
    }
}
template <bool carry_in, bool high>
void carried_product(size_t n, void* const* out, const void* const* in) {
    auto* __restrict result = static_cast<uint32_t*>(out[0]);
    auto* __restrict carry = static_cast<uint8_t*>(out[1]);
    const uint32_t *a = in_as<uint32_t>(in, 0), *b = in_as<uint32_t>(in, 1), *c = in_as<uint32_t>(in, 2);
    const uint8_t* given = carry_in ? in_as<uint8_t>(in, 3) : nullptr;
    for (size_t i = 0; i < n; i++) {
        uint64_t product = uint64_t(a[i]) * b[i];
        uint64_t total = (high ? product >> 32 : product & 0xffffffff) + c[i] + (carry_in ? given[i] : 0);
        result[i] = uint32_t(total);
        carry[i] = (total >> 32) & 1;
    }
}

template <class Compare, class T>
void add_comparison(Table& table, const std::string& name, const std::string& type) {
    table["setp." + name + "." + type] = two<Compare, uint8_t, T>();
    table["setp." + name + ".and." + type] = three<CombinedComparison<Compare, And<uint8_t>, T>, uint8_t, T, T>();
    table["setp." + name + ".or." + type] = three<CombinedComparison<Compare, Or<uint8_t>, T>, uint8_t, T, T>();
    table["setp." + name + ".xor." + type] = three<CombinedComparison<Compare, Xor<uint8_t>, T>, uint8_t, T, T>();
}
template <class T>
void add_comparisons(Table& table, const std::string& type) {
    add_comparison<Equal<T>, T>(table, "eq", type);
    add_comparison<NotEqual<T>, T>(table, "ne", type);
    const char* names[2][4] = {{"lt", "le", "gt", "ge"}, {"lo", "ls", "hi", "hs"}};
    for (int set = 0; set < (std::is_signed_v<T> ? 1 : 2); set++) {
        add_comparison<Less<T>, T>(table, names[set][0], type);
        add_comparison<LessEqual<T>, T>(table, names[set][1], type);
        add_comparison<Greater<T>, T>(table, names[set][2], type);
        add_comparison<GreaterEqual<T>, T>(table, names[set][3], type);
    }
}
template <class T>
void add_integers(Table& table, const std::string& type) {
    table["add." + type] = two<Add<T>, T, T>();
    table["sub." + type] = two<Subtract<T>, T, T>();
    table["min." + type] = two<Minimum<T>, T, T>();
    table["max." + type] = two<Maximum<T>, T, T>();
    table["mul.lo." + type] = two<Low<T>, T, T>();
    table["mul.hi." + type] = two<High<T>, T, T>();
    table["mad.lo." + type] = three<LowAdd<T>, T, T>();
    table["mad.hi." + type] = three<HighAdd<T>, T, T>();
    if constexpr (sizeof(T) == 2) {
        table["add." + type + "x2"] = two<Halves<Add<T>, T>, uint32_t, uint32_t>();
        table["min." + type + "x2"] = two<Halves<Minimum<T>, T>, uint32_t, uint32_t>();
        table["max." + type + "x2"] = two<Halves<Maximum<T>, T>, uint32_t, uint32_t>();
    }
    if constexpr (sizeof(T) < 8) {
        table["mul.wide." + type] = two<Wide<T>, Wider<T>, T>();
        table["mad.wide." + type] = three<WideAdd<T>, Wider<T>, T>();
    }
    table["div." + type] = two<Divide<T>, T, T>();
    table["rem." + type] = two<Remainder<T>, T, T>();
    table["sad." + type] = three<SumOfDifferences<T>, T, T>();
    table["shr." + type] = two<ShiftRight<T>, T, T, uint32_t>();
    if constexpr (std::is_signed_v<T>) {
        table["neg." + type] = one<Negate<T>, T, T>();
        table["abs." + type] = one<Absolute<T>, T, T>();
        table["min.relu." + type] = two<MinimumRelu<T>, T, T>();
        table["max.relu." + type] = two<MaximumRelu<T>, T, T>();
    }
    add_comparisons<T>(table, type);
}
template <class T>
void add_bits(Table& table, const std::string& width) {
    table["and.b" + width] = two<And<T>, T, T>();
    table["or.b" + width] = two<Or<T>, T, T>();
    table["xor.b" + width] = two<Xor<T>, T, T>();
    table["not.b" + width] = one<Not<T>, T, T>();
    table["shl.b" + width] = two<ShiftLeft<T>, T, T, uint32_t>();
    table["shr.b" + width] = two<ShiftRight<T>, T, T, uint32_t>();
    add_comparison<Equal<T>, T>(table, "eq", "b" + width);
    add_comparison<NotEqual<T>, T>(table, "ne", "b" + width);
    for (const char* type : {"b", "u", "s", "f"}) {
        table[std::string("mov.") + type + width] = one<Move<T>, T, T>();
        table[std::string("selp.") + type + width] = three<Select<T>, T, T, T, uint8_t>();
    }
}
template <bool ftz, bool sat>
void add_floats(Table& table, const std::string& suffix) {
    for (const char* rounding : {"", ".rn"}) {
        table["add" + (rounding + suffix)] = two<FloatAdd<ftz, sat>, float, float>();
        table["sub" + (rounding + suffix)] = two<FloatSubtract<ftz, sat>, float, float>();
        table["mul" + (rounding + suffix)] = two<FloatMultiply<ftz, sat>, float, float>();
    }
    table["fma.rn" + suffix] = three<FloatFused<ftz, sat>, float, float>();
}

Table made() {
    Table table;
    add_integers<int16_t>(table, "s16");
    add_integers<int32_t>(table, "s32");
    add_integers<int64_t>(table, "s64");
    add_integers<uint16_t>(table, "u16");
    add_integers<uint32_t>(table, "u32");
    add_integers<uint64_t>(table, "u64");
    add_bits<uint16_t>(table, "16");
    add_bits<uint32_t>(table, "32");
    add_bits<uint64_t>(table, "64");
    table["and.pred"] = two<And<uint8_t>, uint8_t, uint8_t>();
    table["or.pred"] = two<Or<uint8_t>, uint8_t, uint8_t>();
    table["xor.pred"] = two<Xor<uint8_t>, uint8_t, uint8_t>();
    table["not.pred"] = one<NotPredicate, uint8_t, uint8_t>();
    table["mov.pred"] = one<Move<uint8_t>, uint8_t, uint8_t>();
    for (const char* type : {"u32", "s32", "b32"}) {
        std::string end = std::string(".") + type;
        Operation carries{carried<false, false>, 2, 2, {4, 1}, {4, 4}};
        table["add.cc" + end] = carries;
        table["sub.cc" + end] = {carried<false, true>, 2, 2, {4, 1}, {4, 4}};
        table["addc" + end] = table["addc.cc" + end] = {carried<true, false>, 2, 3, {4, 1}, {4, 4, 1}};
        table["subc" + end] = table["subc.cc" + end] = {carried<true, true>, 2, 3, {4, 1}, {4, 4, 1}};
        table["mad.lo.cc" + end] = {carried_product<false, false>, 2, 3, {4, 1}, {4, 4, 4}};
        table["madc.lo" + end] = table["madc.lo.cc" + end] = {carried_product<true, false>, 2, 4, {4, 1}, {4, 4, 4, 1}};
        if (type[0] != 'u') continue;  // the upper half of a product of signed numbers is another one
        table["mad.hi.cc" + end] = {carried_product<false, true>, 2, 3, {4, 1}, {4, 4, 4}};
        table["madc.hi" + end] = table["madc.hi.cc" + end] = {carried_product<true, true>, 2, 4, {4, 1}, {4, 4, 4, 1}};
    }
    add_floats<false, false>(table, ".f32");
    add_floats<true, false>(table, ".ftz.f32");
    add_floats<false, true>(table, ".sat.f32");
    add_floats<true, true>(table, ".ftz.sat.f32");
    return table;
}

}  // namespace

const Operation* find_arithmetic(std::string_view opcode) {
    static const Table table = made();
    auto found = table.find(opcode);
    return found == table.end() ? nullptr : &found->second;
}

}  // namespace software_gpu
