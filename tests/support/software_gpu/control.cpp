// Which threads execute which instruction: guards, branches, barriers.

#include <algorithm>

#include "block.h"

namespace software_gpu {
namespace {

constexpr uint32_t over = ~uint32_t(0);

unsigned count(const std::vector<uint8_t>& those) {
    unsigned total = 0;
    for (uint8_t one : those) total += one;
    return total;
}

}  // namespace

bool Block::step() {
    const Bound& bound = code[at];
    const Instruction& one = *bound.instruction;
    if (++executed > launch.most_instructions)
        return fail("the block has not ended after " + std::to_string(executed - 1) + " instructions");
    if (!all && !others.empty())  // others may stand here too
        for (size_t i = 0; i < others.size();) {
            if (others[i].place != at) {
                i++;
                continue;
            }
            for (unsigned thread = 0; thread < stride; thread++) active[thread] |= others[i].threads[thread];
            others.erase(others.begin() + i);
            all = count(active) == threads;
        }
    if (!all && one.takes_warps && stall()) return true;
    if (one.checks_inputs && one.guarded && !check_guard(bound)) return false;
    bool any = guard(bound);
    if (!any) {
        at++;
    } else {
        if (one.checks_inputs && !check_inputs(bound)) return false;
        std::string name;
        if (!products.empty() && is_pending(one, name))
            return fail("register " + name + " while wgmma still computes it");
        if (!execute(bound)) return false;
        if (one.marks_outputs) mark_outputs(bound);
        if (one.feeds_wgmma)
            for (auto& out : one.out)
                if (out.bytes == 4) not_fenced.insert(out.index);
        if (one.kind != Kind::branch && one.kind != Kind::exit && one.kind != Kind::barrier) at++;
    }
    // The lowest place goes first: where paths meet again, those behind catch up.
    for (auto& other : others)
        if (other.place < at) {
            put_into(others, at, active);
            go_on();
            break;
        }
    return true;
}

bool Block::guard(const Bound& bound) {
    mask = all ? nullptr : active.data();
    if (!bound.guard) return true;
    uint8_t flip = bound.instruction->guard_negated, any = 0, every = 1;
    const uint8_t *given = bound.guard, *before = active.data();
    uint8_t* after = guarded.data();
    for (unsigned i = 0; i < stride; i++) {
        uint8_t is = before[i] & (given[i] ^ flip);
        after[i] = is;
        any |= is;
    }
    if (!any) return false;
    if (all) {
        for (unsigned i = 0; i < threads; i++) every &= after[i];
        if (every) return true;
    }
    mask = after;
    return true;
}

void Block::put_into(std::vector<Group>& groups, uint32_t place, const std::vector<uint8_t>& those) {
    for (auto& group : groups) {
        if (group.place != place) continue;
        for (size_t i = 0; i < those.size(); i++) group.threads[i] |= those[i];
        return;
    }
    groups.push_back({place, those});
}

bool Block::whole_warps() const {
    for (unsigned first_thread = 0; first_thread < threads; first_thread += 32) {
        bool any = false, every = true;
        for (unsigned i = first_thread; i < first_thread + 32 && i < threads; i++) {
            any |= active[i];
            every &= active[i] || ended[i];
        }
        if (any && !every) return false;
    }
    return true;
}

bool Block::stall() {
    put_into(stalled, at, active);
    for (size_t i = 0; i < stalled.size(); i++) {
        if (stalled[i].place != at) continue;
        active = std::move(stalled[i].threads);
        stalled.erase(stalled.begin() + i);
        break;
    }
    all = count(active) == threads;
    // Without anybody who could come, the instruction itself says what is missing.
    if (whole_warps() || others.empty()) return false;
    put_into(stalled, at, active);
    go_on();
    return true;
}

void Block::go_on() {
    if (others.empty()) std::swap(others, stalled);  // nobody else will come
    if (others.empty()) {
        at = over;
        return;
    }
    auto lowest = std::min_element(
        others.begin(), others.end(), [](const Group& a, const Group& b) { return a.place < b.place; });
    at = lowest->place;
    active = std::move(lowest->threads);
    others.erase(lowest);
    all = count(active) == threads;
}

void Block::branch(const Instruction& one) {
    if (!mask || mask == active.data()) {
        at = one.number;
        return;
    }
    std::vector<uint8_t> stays = active;
    unsigned left = 0;
    for (unsigned i = 0; i < stride; i++) left += stays[i] &= guarded[i] ^ 1;
    if (!left) {
        at = one.number;
        return;
    }
    active = guarded;
    all = false;
    put_into(others, at + 1, stays);
    at = one.number;
}

void Block::leave() {
    std::vector<uint8_t> ends(stride);
    for (unsigned i = 0; i < stride; i++) {
        ends[i] = mask ? mask[i] : active[i];
        active[i] &= ends[i] ^ 1;
        ended[i] |= ends[i];
    }
    gone += count(ends);
    if (count(active)) {
        all = false;
        at++;
    } else {
        go_on();
    }
}

void Block::pass_barrier() {
    shared.barrier();
    accesses.barrier();
    at++;
}

bool Block::wait_at_barrier() {
    if (gone) return fail("a barrier when " + std::to_string(gone) + " threads have ended");
    if (mask && mask != active.data()) return fail("a barrier for some threads of those that are here");
    if (all) {
        pass_barrier();
        return true;
    }
    for (auto& group : waiting)
        if (group.place != at)
            return fail(
                "a barrier while threads wait at that of line " +
                std::to_string(code[group.place].instruction->line));
    if (waiting.empty()) waiting.push_back({at, std::vector<uint8_t>(stride, 0)});
    auto& here = waiting[0].threads;
    for (unsigned i = 0; i < stride; i++) here[i] |= active[i];
    if (count(here) == threads) {
        active = here;
        all = true;
        waiting.clear();
        pass_barrier();
        return true;
    }
    if (others.empty() && stalled.empty())
        return fail("a barrier that only " + std::to_string(count(here)) + " threads reach");
    go_on();
    return true;
}

bool Block::check_guard(const Bound& bound) {
    auto& by = written[1][bound.instruction->guard];
    for (unsigned thread = 0; thread < threads && !by.empty(); thread++)
        if (active[thread] && !by[thread])
            return fail("register " + function.names[1][bound.instruction->guard] + " was not written", thread);
    return true;
}

bool Block::check_inputs(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    for (auto& in : one.in) {
        if (!in.bytes || written[in.bytes][in.index].empty()) continue;
        auto& by = written[in.bytes][in.index];
        for (unsigned thread = 0; thread < threads; thread++)
            if (on(thread) && !by[thread])
                return fail("register " + function.names[in.bytes][in.index] + " was not written", thread);
    }
    return true;
}

void Block::mark_outputs(const Bound& bound) {
    for (auto& out : bound.instruction->out) {
        if (!out.bytes || written[out.bytes][out.index].empty()) continue;
        auto& by = written[out.bytes][out.index];
        for (unsigned i = 0; i < stride; i++) by[i] |= mask ? mask[i] : 1;
    }
}

bool Block::execute(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    switch (one.kind) {
        case Kind::elementwise: elementwise(bound); return true;
        case Kind::pack: pack(bound); return true;
        case Kind::unpack: unpack(bound); return true;
        case Kind::load_parameter: load_parameter(bound); return true;
        case Kind::branch: branch(one); return true;
        case Kind::exit: leave(); return true;
        case Kind::trap: return fail("the kernel ends itself");
        case Kind::nothing: return true;
        case Kind::wait_for_launch:
            if (mask) return fail("only some threads wait for the launch before");
            accesses.wait_for_the_launch_before();
            return true;
        case Kind::barrier: return wait_at_barrier();
        case Kind::warp_barrier: return warp_barrier(bound);
        case Kind::load: return load(bound);
        case Kind::store: return store(bound);
        case Kind::atomic: return atomic(bound);
        case Kind::copy_async: return begin_copies(bound);
        case Kind::copy_commit:
            for (unsigned thread = 0; thread < threads; thread++) committed[thread] += on(thread);
            return true;
        case Kind::copy_wait: return end_copies(one);
        case Kind::shuffle: return shuffle(bound);
        case Kind::vote: return vote(bound);
        case Kind::reduce: return reduce(bound);
        case Kind::active_mask: active_mask(bound); return true;
        case Kind::mma: return mma(bound);
        case Kind::move_matrices: return move_matrices(bound);
        case Kind::wgmma: return wgmma(bound);
        case Kind::wgmma_fence: not_fenced.clear(); return true;
        case Kind::wgmma_commit: product_groups++; return true;
        case Kind::wgmma_wait: return end_products(one.number);
        case Kind::proxy_fence: shared.proxy_fence(); return true;
    }
    return fail("not executed");
}

}  // namespace software_gpu
