// What crosses the lanes of a warp.

#include <algorithm>

#include "block.h"

namespace software_gpu {

uint32_t Block::active_lanes(unsigned warp) const {
    uint32_t found = 0;
    for (unsigned lane = 0; lane < 32 && 32 * warp + lane < threads; lane++)
        found |= uint32_t(on(32 * warp + lane)) << lane;
    return found;
}

// Calls `work(warp, lanes)` for each warp of which threads are here; those must be all that each of them names.
template <class F>
bool Block::by_warp(const Bound& bound, size_t members_input, F&& work) {
    auto* members = static_cast<const uint32_t*>(bound.in[members_input]);
    for (unsigned warp = 0; warp < lanes / 32; warp++) {
        uint32_t here = active_lanes(warp), exist = threads - 32 * warp >= 32 ? ~0u : (1u << (threads - 32 * warp)) - 1;
        if (!here) continue;
        for (unsigned lane = 0; lane < 32; lane++) {
            if (!(here >> lane & 1)) continue;
            uint32_t named = members[32 * warp + lane];
            if (!(named >> lane & 1)) return fail("a thread that its own mask does not name", 32 * warp + lane);
            if ((named & exist) != here) {
                char text[80];
                std::snprintf(text, sizeof text, "names the lanes 0x%x of its warp, here are 0x%x", named, here);
                return fail(text, 32 * warp + lane);
            }
        }
        if (!work(warp, here)) return false;
    }
    return true;
}

bool Block::warp_barrier(const Bound& bound) {
    return by_warp(bound, 0, [](unsigned, uint32_t) { return true; });
}

bool Block::shuffle(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    auto* values = static_cast<const uint32_t*>(bound.in[0]);
    auto* places = static_cast<const uint32_t*>(bound.in[1]);
    auto* clamps = static_cast<const uint32_t*>(bound.in[2]);
    auto* result = static_cast<uint32_t*>(bound.out[0]);
    auto* inside = one.out.size() > 1 ? static_cast<uint8_t*>(bound.out[1]) : nullptr;
    return by_warp(bound, 3, [&](unsigned warp, uint32_t here) {
        uint32_t taken[32];
        bool found[32];
        for (int lane = 0; lane < 32; lane++) {
            unsigned thread = 32 * warp + lane;
            if (!(here >> lane & 1)) continue;
            int by = places[thread] & 31, segment = clamps[thread] >> 8 & 31, clamp = clamps[thread] & 31;
            int last = (lane & segment) | (clamp & ~segment), from = lane;
            switch (one.type) {
                case 'u': from = lane - by; break;
                case 'd': from = lane + by; break;
                case 'b': from = lane ^ by; break;
                default: from = (lane & segment) | (by & ~segment);
            }
            found[lane] = one.type == 'u' ? from >= last : from <= last;
            if (!found[lane]) from = lane;
            if (!(here >> from & 1)) return fail("lane " + std::to_string(from) + " is not there", thread);
            taken[lane] = values[32 * warp + from];
        }
        for (int lane = 0; lane < 32; lane++) {
            if (!(here >> lane & 1)) continue;
            if (result) result[32 * warp + lane] = taken[lane];
            if (inside) inside[32 * warp + lane] = found[lane];
        }
        return true;
    });
}

bool Block::vote(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    auto* given = static_cast<const uint8_t*>(bound.in[0]);
    return by_warp(bound, 1, [&](unsigned warp, uint32_t here) {
        uint32_t yes = 0;
        for (unsigned lane = 0; lane < 32; lane++) yes |= uint32_t(given[32 * warp + lane] & 1) << lane;
        yes &= here;
        bool all_ = yes == here, any = yes != 0;
        bool result = one.combine == Combine::all ? all_ : one.combine == Combine::any ? any : all_ || !any;
        for (unsigned lane = 0; lane < 32; lane++) {
            if (!(here >> lane & 1) || !bound.out[0]) continue;
            if (one.combine == Combine::ballot) static_cast<uint32_t*>(bound.out[0])[32 * warp + lane] = yes;
            else static_cast<uint8_t*>(bound.out[0])[32 * warp + lane] = result;
        }
        return true;
    });
}

bool Block::reduce(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    auto* given = static_cast<const uint32_t*>(bound.in[0]);
    auto* result = static_cast<uint32_t*>(bound.out[0]);
    bool is_signed = one.type == 's';
    return by_warp(bound, 1, [&](unsigned warp, uint32_t here) {
        uint32_t total = 0;
        bool first_one = true;
        for (unsigned lane = 0; lane < 32; lane++) {
            if (!(here >> lane & 1)) continue;
            uint32_t value = given[32 * warp + lane];
            bool less = is_signed ? int32_t(value) < int32_t(total) : value < total;
            if (first_one) total = value;
            else if (one.combine == Combine::add) total += value;
            else if (one.combine == Combine::and_) total &= value;
            else if (one.combine == Combine::or_) total |= value;
            else if (one.combine == Combine::xor_) total ^= value;
            else if (less == (one.combine == Combine::min)) total = value;
            first_one = false;
        }
        for (unsigned lane = 0; lane < 32 && result; lane++)
            if (here >> lane & 1) result[32 * warp + lane] = total;
        return true;
    });
}

void Block::active_mask(const Bound& bound) {
    for (unsigned thread = 0; thread < threads; thread++)
        if (on(thread) && bound.out[0]) static_cast<uint32_t*>(bound.out[0])[thread] = active_lanes(thread / 32);
}

}  // namespace software_gpu
