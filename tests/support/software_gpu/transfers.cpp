// Atomic operations, and copies that go on in the background.

#include <algorithm>
#include <cstring>

#include "block.h"

namespace software_gpu {
namespace {

template <class T>
T combined(Combine combine, T old, T given, T other) {
    switch (combine) {
        case Combine::add: return T(old + given);
        case Combine::min: return std::min(old, given);
        case Combine::max: return std::max(old, given);
        case Combine::exch: return given;
        case Combine::inc: return old >= given ? T(0) : T(old + 1);
        case Combine::dec: return old == T(0) || old > given ? given : T(old - 1);
        case Combine::cas: return old == given ? other : old;
        default: return old;
    }
}
template <class T>
T combined_bits(Combine combine, T old, T given, T other) {
    switch (combine) {
        case Combine::and_: return old & given;
        case Combine::or_: return old | given;
        case Combine::xor_: return old ^ given;
        default: return combined(combine, old, given, other);
    }
}

template <class T, class F>
void update(uint8_t* at, void* old, const void* given, const void* other, unsigned thread, F&& result) {
    T before, value = static_cast<const T*>(given)[thread], last{};
    if (other) last = static_cast<const T*>(other)[thread];
    std::memcpy(&before, at, sizeof before);
    T after = result(before, value, last);
    std::memcpy(at, &after, sizeof after);
    if (old) static_cast<T*>(old)[thread] = before;
}

}  // namespace

bool Block::atomic(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    if (!find_addresses(bound, 0, one.offset, one.element)) return false;
    void* old = one.out.empty() ? nullptr : bound.out[0];
    const void* other = one.in.size() > 2 ? bound.in[2] : nullptr;
    Combine combine = one.combine;
    for (unsigned thread = 0; thread < threads; thread++) {
        if (!on(thread)) continue;
        uint8_t* at;
        if (one.space == Space::shared) {
            auto place = uint32_t(addresses[thread]);
            if (const char* wrong = shared.combine(place, one.element))
                return fail(address_text(place) + ": " + wrong, thread);
            at = shared.content() + place;
        } else if (!(at = global(addresses[thread], one.element, thread, false, true))) {
            return false;
        } else {
            if (one.order == Order::release || one.order == Order::acq_rel)
                accesses.release(addresses[thread], thread / 32);
            if (one.order == Order::acquire || one.order == Order::acq_rel)
                accesses.acquire(addresses[thread], thread / 32);
        }
        bool wide = one.element == 8;
        auto bits = [&](auto before, auto value, auto last) { return combined_bits(combine, before, value, last); };
        auto numbers = [&](auto before, auto value, auto last) { return combined(combine, before, value, last); };
        if (one.type == 'f' && wide) update<double>(at, old, bound.in[1], other, thread, numbers);
        else if (one.type == 'f') update<float>(at, old, bound.in[1], other, thread, numbers);
        else if (one.type == 's' && wide) update<int64_t>(at, old, bound.in[1], other, thread, bits);
        else if (one.type == 's') update<int32_t>(at, old, bound.in[1], other, thread, bits);
        else if (wide) update<uint64_t>(at, old, bound.in[1], other, thread, bits);
        else update<uint32_t>(at, old, bound.in[1], other, thread, bits);
    }
    return true;
}

bool Block::begin_copies(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    unsigned bytes = one.element;
    if (!find_addresses(bound, 0, one.offset, bytes)) return false;
    size_t first_new = copies.size();
    auto* valid = one.in.size() > 2 ? static_cast<const uint32_t*>(bound.in[2]) : nullptr;
    for (unsigned thread = 0; thread < threads; thread++) {
        if (!on(thread)) continue;
        auto place = uint32_t(addresses[thread]);
        if (const char* wrong = shared.begin_copy(place, bytes, thread / 32))
            return fail(address_text(place) + ": " + wrong, thread);
        uint32_t from_source = valid ? valid[thread] : bytes;
        if (from_source > bytes) return fail("a source of " + std::to_string(from_source) + " bytes", thread);
        copies.push_back({thread, committed[thread], place, bytes, from_source, 0});
    }
    auto* sources = static_cast<const uint64_t*>(bound.in[1]);
    for (size_t i = first_new; i < copies.size(); i++) {
        Copy& copy = copies[i];
        copy.source = sources[copy.thread] + int64_t(int32_t(one.number));
        if (!copy.valid) continue;  // then the address is not looked at
        if (copy.source & (bytes - 1))
            return fail(address_text(copy.source) + " is not a multiple of " + std::to_string(bytes), copy.thread);
        if (!global(copy.source, copy.valid, copy.thread, false, false)) return false;
    }
    return true;
}

bool Block::end_copies(const Instruction& one) {
    bool everything = one.type == 'a';  // what is in no group yet included
    size_t kept = 0;
    for (auto& copy : copies) {
        uint32_t group_end = committed[copy.thread];
        bool ends = on(copy.thread) && (everything || (copy.group < group_end && group_end - copy.group > one.number));
        if (!ends) {
            copies[kept++] = copy;
            continue;
        }
        uint8_t* into = shared.content() + copy.target;
        std::memcpy(into, reinterpret_cast<const void*>(copy.source), copy.valid);
        std::memset(into + copy.valid, 0, copy.bytes - copy.valid);
        shared.end_copy(copy.target, copy.bytes);
    }
    copies.resize(kept);
    return true;
}

}  // namespace software_gpu
