// Operations made of functions of one thread, and opcodes taken apart.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "operation.h"

namespace software_gpu {

template <class F, class D, class... S, size_t... I>
void run_lanes(size_t n, void* const* out, const void* const* in, std::index_sequence<I...>) {
    auto* __restrict result = static_cast<D*>(out[0]);
    n &= ~size_t(31);
#pragma GCC ivdep
    for (size_t i = 0; i < n; i++) result[i] = F{}(static_cast<const S*>(in[I])[i]...);
}

template <class F, class D, class... S>
void run(size_t n, void* const* out, const void* const* in) {
    run_lanes<F, D, S...>(n, out, in, std::index_sequence_for<S...>{});
}

// d = F{}(s...): types that registers hold, uint8_t for predicates.
template <class F, class D, class... S>
Operation each() {
    return {&run<F, D, S...>, 1, sizeof...(S), {sizeof(D)}, {sizeof(S)...}};
}
// The same, with the function and its types given by a lambda.
template <class F, class D, class... S>
Operation of_lambda(D (F::*)(S...) const) {
    return each<F, D, S...>();
}
template <class F>
Operation each(F) {
    return of_lambda<F>(&F::operator());
}

using Found = std::optional<Operation>;

// "min.NaN.f32": a name and what follows it.
struct Opcode {
    std::string_view name;
    std::vector<std::string_view> parts;

    explicit Opcode(std::string_view text) {
        for (size_t begin = 0; begin <= text.size();) {
            size_t end = std::min(text.find('.', begin), text.size());
            begin == 0 ? void(name = text.substr(0, end)) : parts.push_back(text.substr(begin, end - begin));
            begin = end + 1;
        }
    }
    bool has(std::string_view part) const { return std::find(parts.begin(), parts.end(), part) != parts.end(); }
    // The part at a place; counted from the end if that is negative. Empty if there is none.
    std::string_view at(int place) const {
        size_t found = place < 0 ? parts.size() + place : place;
        return found < parts.size() ? parts[found] : std::string_view();
    }
    // Whether all parts but the last `types` are among `known`.
    bool only(std::initializer_list<std::string_view> known, size_t types = 1) const {
        if (parts.size() < types) return false;
        return std::all_of(parts.begin(), parts.end() - types, [&](std::string_view part) {
            return std::find(known.begin(), known.end(), part) != known.end();
        });
    }
};

}  // namespace software_gpu
