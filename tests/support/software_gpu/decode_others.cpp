// What does not work thread by thread: memory, control, barriers, and what crosses the lanes of a warp.

#include <map>

#include "arithmetic.h"
#include "decode.h"

namespace software_gpu {
namespace {

uint8_t element_bytes(std::string_view type) {
    static const std::map<std::string_view, uint8_t> known = {
        {"b8", 1}, {"u8", 1}, {"s8", 1}, {"b16", 2}, {"u16", 2}, {"s16", 2}, {"b32", 4}, {"u32", 4},
        {"s32", 4}, {"f32", 4}, {"b64", 8}, {"u64", 8}, {"s64", 8}, {"f64", 8},
    };  // fmt: skip
    auto found = known.find(type);
    return found == known.end() ? 0 : found->second;
}

bool space_of(std::string_view part, Space& space) {
    if (part == "global") space = Space::global;
    else if (part == "const") space = Space::global;
    else if (part == "shared" || part == "shared::cta") space = Space::shared;
    else if (part == "local") space = Space::local;
    else return false;
    return true;
}

bool order_of(std::string_view part, Order& order) {
    if (part == "weak") order = Order::weak;
    else if (part == "relaxed" || part == "volatile") order = Order::relaxed;
    else if (part == "acquire") order = Order::acquire;
    else if (part == "release") order = Order::release;
    else if (part == "acq_rel") order = Order::acq_rel;
    else return false;
    return true;
}

bool is_scope(std::string_view part) { return part == "cta" || part == "cluster" || part == "gpu" || part == "sys"; }
bool is_hint(std::string_view part) { return part.substr(0, 4) == "L1::" || part.substr(0, 4) == "L2::"; }

bool combine_of(std::string_view part, Combine& combine) {
    static const std::map<std::string_view, Combine> known = {
        {"add", Combine::add}, {"min", Combine::min}, {"max", Combine::max}, {"and", Combine::and_},
        {"or", Combine::or_}, {"xor", Combine::xor_}, {"exch", Combine::exch}, {"inc", Combine::inc},
        {"dec", Combine::dec}, {"cas", Combine::cas}, {"all", Combine::all}, {"any", Combine::any},
        {"uni", Combine::uni}, {"ballot", Combine::ballot},
    };  // fmt: skip
    auto found = known.find(part);
    return found != known.end() && (combine = found->second, true);
}

}  // namespace

bool Decoder::operands(size_t least, size_t most) {
    size_t count = statement->operands.size();
    return (count >= least && count <= most) || fail(std::to_string(count) + " operands");
}

bool Decoder::other_instruction() {
    std::string_view name = parts[0];
    if (name == "bra" || name == "ret" || name == "exit" || name == "trap" || name == "bar" || name == "barrier" ||
        name == "griddepcontrol" || name == "prefetch" || name == "membar" || name == "fence" || name == "nanosleep" ||
        name == "createpolicy" || name == "cvta")
        return control();
    if (name == "ld" && has("param")) return parameter();
    if (name == "ld" || name == "st") return transfer();
    if (name == "atom" || name == "red") return atomic();
    if (name == "cp" && has("async")) return copy();
    if (name == "shfl" || name == "vote" || name == "redux" || name == "activemask") return lanes();
    if (name == "mma" || name == "ldmatrix" || name == "stmatrix") return matrix();
    if (name == "wgmma") return warp_group_matrix();
    return false;
}

bool Decoder::control() {
    auto& texts = statement->operands;
    std::string_view name = parts[0];
    if (name == "bra") {
        made.kind = Kind::branch;
        if (!operands(1, 1)) return false;
        auto found = labels.find(texts[0].text);
        if (found == labels.end()) return fail("no label " + texts[0].text);
        made.number = found->second;
        return true;
    }
    if (name == "ret" || name == "exit") return made.kind = Kind::exit, operands(0, 0);
    if (name == "trap") return made.kind = Kind::trap, operands(0, 0);
    if (name == "bar" || name == "barrier") {
        if (made.opcode == "bar.warp.sync") {
            made.kind = Kind::warp_barrier;
            return operands(1, 1) && source(texts[0], 4, made.in.emplace_back());
        }
        if (made.opcode != "bar.sync" && made.opcode != "barrier.sync" && made.opcode != "barrier.sync.aligned")
            return false;
        made.kind = Kind::barrier;
        bool plain = texts.size() == 1 && texts[0].kind == OperandText::number && texts[0].value == 0;
        return plain || fail("only barrier 0 with all threads of the block is known");
    }
    if (name == "createpolicy") {  // a hint: any value will do
        made.kind = Kind::elementwise;
        made.operation = find_arithmetic("mov.b64");
        made.in.push_back(constant(8, 0));
        return operands(1, 5) && destination(texts[0], made.out.emplace_back());
    }
    if (name == "cvta") {
        if (made.opcode != "cvta.to.global.u64" && made.opcode != "cvta.global.u64") return fail("generic addresses");
        made.kind = Kind::elementwise;
        made.operation = find_arithmetic("mov.b64");
        return operands(2, 2) && destination(texts[0], made.out.emplace_back()) &&
               source(texts[1], 8, made.in.emplace_back());
    }
    if (made.opcode == "fence.proxy.async.shared::cta" || made.opcode == "fence.proxy.async") {
        made.kind = Kind::proxy_fence;
        return true;
    }
    if (made.opcode == "griddepcontrol.wait") return made.kind = Kind::wait_for_launch, operands(0, 0);
    bool harmless = made.opcode == "griddepcontrol.launch_dependents" ||
                    name == "prefetch" || name == "membar" || name == "nanosleep" ||
                    (name == "fence" && (has("acq_rel") || has("sc")));
    made.kind = Kind::nothing;
    return harmless;
}

bool Decoder::parameter() {
    auto& texts = statement->operands;
    made.kind = Kind::load_parameter;
    made.element = element_bytes(parts.back());
    if (!made.element || !operands(2, 2)) return fail("unknown instruction");
    auto& place = texts[1];
    if (place.kind != OperandText::address || place.parts.empty()) return fail("expected [parameter]");
    for (auto& one : function.parameters) {
        if (one.name != place.parts[0].text) continue;
        made.offset = int64_t(one.offset + place.value);
        if (place.value + made.element > one.bytes) return fail("beyond parameter " + one.name);
        made.type = parts.back()[0];
        if (!list(texts[0], 0, true, made.out)) return false;
        return (made.out.size() == 1 && made.out[0].bytes >= made.element) || fail("a register of another width");
    }
    return fail("no parameter '" + place.parts[0].text + "'");
}

bool Decoder::transfer() {
    auto& texts = statement->operands;
    bool loads = parts[0] == "ld", spaced = false;
    made.kind = loads ? Kind::load : Kind::store;
    size_t count = 1;
    for (size_t i = 1; i + 1 < parts.size(); i++) {
        std::string_view part = parts[i];
        if (space_of(part, made.space)) spaced = true;
        else if (part == "v2") count = 2;
        else if (part == "v4") count = 4;
        else if (part == "v8") count = 8;
        else if (!order_of(part, made.order) && !is_scope(part) && !is_hint(part) && part != "nc") return false;
    }
    made.element = element_bytes(parts.back());
    made.type = parts.back()[0];
    if (!made.element) return false;
    if (!spaced) return fail("generic addresses");
    size_t expected = 2 + (has("L2::cache_hint"));
    if (!operands(expected, expected)) return false;
    if (!address(texts[!loads ? 0 : 1], made.in.emplace_back(), made.offset, made.space)) return false;
    if (!list(texts[loads ? 0 : 1], made.element, loads, loads ? made.out : made.in)) return false;
    size_t given = loads ? made.out.size() : made.in.size() - 1;
    if (given != count) return fail(std::to_string(given) + " registers");
    for (size_t i = loads ? 0 : 1; i < (loads ? made.out : made.in).size(); i++) {
        const Operand& one = (loads ? made.out : made.in)[i];
        if (one.bytes == 1 || (one.bytes && one.bytes < made.element)) return fail("a register that is too narrow");
    }
    return true;
}

bool Decoder::atomic() {
    auto& texts = statement->operands;
    made.kind = Kind::atomic;
    made.order = Order::relaxed;
    bool returns = parts[0] == "atom", combined = false, spaced = false;
    for (size_t i = 1; i + 1 < parts.size(); i++) {
        if (space_of(parts[i], made.space)) spaced = true;
        else if (combine_of(parts[i], made.combine)) combined = true;
        else if (!order_of(parts[i], made.order) && !is_scope(parts[i]) && !is_hint(parts[i])) return false;
    }
    made.element = element_bytes(parts.back());
    made.type = parts.back()[0];
    bool float_ = made.type == 'f';
    if (!combined || made.combine > Combine::cas || (made.element != 4 && made.element != 8)) return false;
    if (float_ && made.combine != Combine::add && made.combine != Combine::exch) return false;
    if (!spaced || made.space == Space::local) return fail("generic addresses");
    size_t values = made.combine == Combine::cas ? 2 : 1;
    size_t expected = returns + 1 + values + has("L2::cache_hint");
    if (!operands(expected, expected)) return false;
    if (returns && !destination(texts[0], made.out.emplace_back())) return false;
    if (!address(texts[returns], made.in.emplace_back(), made.offset, made.space)) return false;
    for (size_t i = 0; i < values; i++)
        if (!source(texts[returns + 1 + i], made.element, made.in.emplace_back()) ||
            made.in.back().bytes != made.element)
            return fail("a register of another width");
    if (returns && made.out[0].bytes && made.out[0].bytes != made.element) return fail("a register of another width");
    return true;
}

bool Decoder::copy() {
    auto& texts = statement->operands;
    std::string_view way = parts.size() > 2 ? parts[2] : "";
    if (way == "commit_group") return made.kind = Kind::copy_commit, operands(0, 0);
    if (way == "wait_all") return made.kind = Kind::copy_wait, made.number = 0, made.type = 'a', operands(0, 0);
    if (way == "wait_group") {
        made.kind = Kind::copy_wait;
        if (!operands(1, 1) || texts[0].kind != OperandText::number) return fail("groups are a number");
        made.number = uint32_t(texts[0].value);
        return true;
    }
    if (way != "cg" && way != "ca") return false;
    if (parts.size() < 5 || (parts[3] != "shared" && parts[3] != "shared::cta") || parts[4] != "global") return false;
    for (size_t i = 5; i < parts.size(); i++)
        if (!is_hint(parts[i])) return false;
    made.kind = Kind::copy_async;
    made.space = Space::shared;
    bool policy = has("L2::cache_hint");
    if (!operands(3 + policy, 4 + policy)) return false;
    made.in.resize(2);
    int64_t source_offset;
    if (!address(texts[0], made.in[0], made.offset, Space::shared)) return false;
    if (!address(texts[1], made.in[1], source_offset, Space::global)) return false;
    made.number = uint32_t(source_offset);
    if (texts[2].kind != OperandText::number) return fail("a size is a number");
    made.element = uint8_t(texts[2].value);
    bool fits = way == "cg" ? made.element == 16 : made.element == 4 || made.element == 8 || made.element == 16;
    if (!fits) return fail("a size of " + std::to_string(texts[2].value));
    if (texts.size() > size_t(3 + policy) && !source(texts[3], 4, made.in.emplace_back())) return false;
    return true;
}

bool Decoder::lanes() {
    auto& texts = statement->operands;
    std::string_view name = parts[0];
    if (made.opcode == "activemask.b32")
        return made.kind = Kind::active_mask, operands(1, 1) && destination(texts[0], made.out.emplace_back());
    if (parts.size() < 4 || parts[1] != "sync") return false;
    size_t inputs = 2;
    if (name == "shfl") {
        made.kind = Kind::shuffle;
        if (parts[2] != "idx" && parts[2] != "up" && parts[2] != "down" && parts[2] != "bfly") return false;
        made.type = parts[2][0];
        inputs = 4;
    } else if (name == "redux") {
        made.kind = Kind::reduce;
        if (!combine_of(parts[2], made.combine) || made.combine > Combine::xor_) return false;
        made.type = parts.back()[0];
    } else {
        made.kind = Kind::vote;
        if (!combine_of(parts[2], made.combine) || made.combine < Combine::all) return false;
    }
    bool predicate = name == "vote" && made.combine != Combine::ballot;
    if (parts.size() != 4 || (predicate ? parts[3] != "pred" : element_bytes(parts[3]) != 4)) return false;
    if (!operands(1 + inputs, 1 + inputs)) return false;
    if (texts[0].kind == OperandText::pair) {
        made.out.resize(2);
        if (!destination(texts[0].parts[0], made.out[0]) || !destination(texts[0].parts[1], made.out[1])) return false;
    } else if (!destination(texts[0], made.out.emplace_back())) {
        return false;
    }
    for (size_t i = 0; i < inputs; i++) {
        uint8_t bytes = name == "vote" && i == 0 ? 1 : 4;
        if (!source(texts[1 + i], bytes, made.in.emplace_back())) return false;
        if (made.in.back().bytes != bytes) return fail("a register of another width");
    }
    return true;
}

bool Decoder::matrix() {
    auto& texts = statement->operands;
    if (parts[0] == "mma") {
        made.kind = Kind::mma;
        made.mma = find_mma(made.opcode);
        if (!made.mma.m) return false;
        if (!operands(4, 4) || !list(texts[0], 4, true, made.out)) return false;
        for (size_t i = 1; i < 4; i++)
            if (!list(texts[i], 4, false, made.in)) return false;
        bool right = int(made.out.size()) == made.mma.d_registers &&
                     int(texts[1].parts.size()) == made.mma.a_registers &&
                     int(texts[2].parts.size()) == made.mma.b_registers &&
                     int(texts[3].parts.size()) == made.mma.c_registers;
        for (auto& one : made.in) right &= one.bytes == 4;
        return right || fail("registers of another number or width");
    }
    made.kind = Kind::move_matrices;
    made.space = Space::shared;
    made.matrices = find_matrix_move(made.opcode);
    if (!made.matrices.count) return false;
    bool store = made.matrices.store;
    if (!operands(2, 2) || !address(texts[store ? 0 : 1], made.in.emplace_back(), made.offset, Space::shared))
        return false;
    if (!list(texts[store ? 1 : 0], 4, !store, store ? made.in : made.out)) return false;
    size_t given = store ? made.in.size() - 1 : made.out.size();
    return int(given) == made.matrices.count || fail("another number of registers");
}

bool Decoder::warp_group_matrix() {
    auto& texts = statement->operands;
    if (parts.size() > 1 && parts[1] == "fence") return made.kind = Kind::wgmma_fence, operands(0, 0);
    if (parts.size() > 1 && parts[1] == "commit_group") return made.kind = Kind::wgmma_commit, operands(0, 0);
    if (parts.size() > 1 && parts[1] == "wait_group") {
        made.kind = Kind::wgmma_wait;
        if (!operands(1, 1) || texts[0].kind != OperandText::number) return fail("groups are a number");
        made.number = uint32_t(texts[0].value);
        return true;
    }
    made.kind = Kind::wgmma;
    made.wgmma = find_wgmma(made.opcode);
    if (!made.wgmma.n) return false;
    if (!operands(4, 8) || !list(texts[0], 4, true, made.out)) return false;
    if (int(made.out.size()) != made.wgmma.registers) return fail("another number of registers");
    // in: a (1 descriptor or 4 registers), b, scale-d, and the numbers that follow
    bool registers = texts[1].kind == OperandText::vector;
    if (!list(texts[1], 8, false, made.in) || !source(texts[2], 8, made.in.emplace_back())) return false;
    if (made.in.size() != (registers ? 5 : 2)) return fail("another number of registers");
    if (!source(texts[3], 1, made.in.emplace_back())) return false;
    for (size_t i = 4; i < texts.size(); i++) {
        if (texts[i].kind != OperandText::number) return fail("scales and transpositions are numbers");
        bool set = i < 6 ? int64_t(texts[i].value) < 0 : texts[i].value != 0;
        if (set) made.number |= 1u << (registers && i == 6 ? 3 : i - 4);  // bits: negate a, negate b, transpose a, b
    }
    return true;
}

}  // namespace software_gpu
