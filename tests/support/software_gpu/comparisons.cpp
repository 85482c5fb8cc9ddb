// Comparisons of floats, which may be joined to a predicate.
#include <cmath>
#include <cstdint>
#include <limits>

#include "families.h"
#include "formats.h"

namespace software_gpu {
namespace {

enum class Join { none, and_, or_, xor_ };

template <class T>
struct Bits {
    using type = T;
    static T number(T x) { return x; }
};
template <>
struct Bits<Half> {
    using type = uint16_t;
    static double number(uint16_t x) { return widen(Half{x}); }
};
template <>
struct Bits<BFloat> {
    using type = uint16_t;
    static float number(uint16_t x) { return to_float({x}); }
};

template <class F, class T, Join join>
struct Joined {
    using S = typename Bits<T>::type;
    uint8_t operator()(S a, S b) const { return F{}(Bits<T>::number(a), Bits<T>::number(b)); }
    uint8_t operator()(S a, S b, uint8_t other) const {
        uint8_t found = (*this)(a, b);
        return join == Join::and_ ? found & other : join == Join::or_ ? found | other : found ^ other;
    }
};

template <class F, class T>
Operation joined(std::string_view how) {
    using S = typename Bits<T>::type;
    if (how == "and") return each<Joined<F, T, Join::and_>, uint8_t, S, S, uint8_t>();
    if (how == "or") return each<Joined<F, T, Join::or_>, uint8_t, S, S, uint8_t>();
    if (how == "xor") return each<Joined<F, T, Join::xor_>, uint8_t, S, S, uint8_t>();
    return each<Joined<F, T, Join::none>, uint8_t, S, S>();
}

template <class T>
Found compare(std::string_view comparison, std::string_view how) {
    auto found = [&](auto function) -> Found { return joined<decltype(function), T>(how); };
    if (comparison == "eq") return found([](auto a, auto b) { return a == b; });
    if (comparison == "ne") return found([](auto a, auto b) { return (a < b) | (a > b); });
    if (comparison == "lt") return found([](auto a, auto b) { return a < b; });
    if (comparison == "le") return found([](auto a, auto b) { return a <= b; });
    if (comparison == "gt") return found([](auto a, auto b) { return a > b; });
    if (comparison == "ge") return found([](auto a, auto b) { return a >= b; });
    if (comparison == "equ") return found([](auto a, auto b) { return !((a < b) | (a > b)); });
    if (comparison == "neu") return found([](auto a, auto b) { return a != b; });
    if (comparison == "ltu") return found([](auto a, auto b) { return !(a >= b); });
    if (comparison == "leu") return found([](auto a, auto b) { return !(a > b); });
    if (comparison == "gtu") return found([](auto a, auto b) { return !(a <= b); });
    if (comparison == "geu") return found([](auto a, auto b) { return !(a < b); });
    if (comparison == "num") return found([](auto a, auto b) { return (a == a) & (b == b); });
    if (comparison == "nan") return found([](auto a, auto b) { return (a != a) | (b != b); });
    return {};
}

template <class T>
Found test(std::string_view property) {
    constexpr T tiny = std::numeric_limits<T>::min(), infinite = std::numeric_limits<T>::infinity();
    if (property == "finite") return each([](T x) -> uint8_t { return std::fabs(x) < infinite; });
    if (property == "infinite") return each([](T x) -> uint8_t { return std::fabs(x) == infinite; });
    if (property == "number") return each([](T x) -> uint8_t { return x == x; });
    if (property == "notanumber") return each([](T x) -> uint8_t { return x != x; });
    if (property == "normal")
        return each([](T x) -> uint8_t { return (std::fabs(x) >= tiny) & (std::fabs(x) < infinite); });
    if (property == "subnormal") return each([](T x) -> uint8_t { return (std::fabs(x) < tiny) & (x != 0); });
    return {};
}

}  // namespace

Found find_comparison(const Opcode& o) {
    auto type = o.at(-1);
    if (o.name == "testp" && o.parts.size() == 2)
        return type == "f32" ? test<float>(o.at(0)) : type == "f64" ? test<double>(o.at(0)) : Found();
    if (o.name != "setp" || o.parts.size() < 2 || o.parts.size() > 3) return {};
    auto how = o.parts.size() == 3 ? o.at(1) : std::string_view();
    if (o.parts.size() == 3 && how != "and" && how != "or" && how != "xor") return {};
    if (type == "f32") return compare<float>(o.at(0), how);
    if (type == "f64") return compare<double>(o.at(0), how);
    if (type == "f16") return compare<Half>(o.at(0), how);
    if (type == "bf16") return compare<BFloat>(o.at(0), how);
    return {};
}

}  // namespace software_gpu
