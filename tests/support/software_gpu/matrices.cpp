// Matrix instructions: which registers and which shared memory they work on, and when their results are there.

#include <algorithm>
#include <cstring>

#include "block.h"

namespace software_gpu {
namespace {

constexpr uint32_t not_there = 0x7fffdead;  // a NaN: what a register holds while wgmma computes it
constexpr unsigned group_threads = 128;

uint32_t* of_warp(void* array, unsigned warp) { return static_cast<uint32_t*>(array) + 32 * warp; }
const uint32_t* of_warp(const void* array, unsigned warp) { return static_cast<const uint32_t*>(array) + 32 * warp; }

}  // namespace

// Whether all threads of a warp are here; where only some are, `error` is set.
bool Block::whole(unsigned warp, unsigned warps, bool& here) {
    unsigned count = 0;
    for (unsigned thread = 32 * warp; thread < 32 * (warp + warps) && thread < threads; thread++) count += on(thread);
    here = count > 0;
    return count == 0 || count == 32 * warps ||
           fail("only " + std::to_string(count) + " threads of warp " + std::to_string(warp));
}

bool Block::mma(const Bound& bound) {
    const Mma& mma = bound.instruction->mma;
    for (unsigned warp = 0; warp < lanes / 32; warp++) {
        bool here;
        if (!whole(warp, 1, here)) return false;
        if (!here) continue;
        uint32_t* d[32];
        const uint32_t* in[3][32];
        const int counts[3] = {mma.a_registers, mma.b_registers, mma.c_registers};
        for (int i = 0; i < mma.d_registers; i++) d[i] = of_warp(bound.out[i], warp);
        const void** next = bound.in;
        for (int kind = 0; kind < 3; kind++)
            for (int i = 0; i < counts[kind]; i++) in[kind][i] = of_warp(*next++, warp);
        multiply(mma, d, in[0], in[1], in[2]);
    }
    return true;
}

bool Block::move_matrices(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    const MatrixMove& move = one.matrices;
    if (!find_addresses(bound, 0, one.offset, 16)) return false;
    for (unsigned warp = 0; warp < lanes / 32; warp++) {
        bool here;
        if (!whole(warp, 1, here)) return false;
        if (!here) continue;
        if (move.store) {
            const uint32_t* from[4];
            uint8_t values[32][16], *rows[32];
            for (int i = 0; i < move.count; i++) from[i] = of_warp(bound.in[1 + i], warp);
            for (int row = 0; row < 32; row++) rows[row] = values[row];
            software_gpu::store_matrices(move, from, rows);
            for (int row = 0; row < 8 * move.count; row++)
                if (!put(one, 32 * warp + row, 16, rows[row])) return false;
        } else {
            const uint8_t* rows[32];
            uint32_t* into[4];
            for (int row = 0; row < 8 * move.count; row++)
                if (!(rows[row] = content(one, 32 * warp + row, 16))) return false;
            for (int i = 0; i < move.count; i++) into[i] = of_warp(bound.out[i], warp);
            software_gpu::load_matrices(move, into, rows);
        }
    }
    return true;
}

namespace {

struct Reader final : SharedReader {
    Shared& shared;
    uint64_t group;
    uint32_t at = 0;

    Reader(Shared& shared, uint64_t group) : shared(shared), group(group) {}
    const char* read(uint32_t start, uint32_t bytes, const uint8_t** content) override {
        at = start;
        const char* wrong = shared.read_async(start, bytes, group);
        if (!wrong) *content = shared.content() + start;
        return wrong;
    }
};

}  // namespace

bool Block::wgmma(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    const Wgmma& wgmma = one.wgmma;
    for (auto* operands : {&one.out, &one.in})
        for (auto& operand : *operands)
            if (operand.bytes == 4 && not_fenced.count(operand.index))
                return fail("register " + function.names[4][operand.index] + " was written without wgmma.fence since");
    for (unsigned first_thread = 0; first_thread < threads; first_thread += group_threads) {
        bool here;
        if (!whole(first_thread / 32, 4, here)) return false;
        if (!here) continue;
        size_t inputs = one.in.size();  // a, or its 4 registers; b; scale-d
        const uint32_t* a[4];
        bool a_in_registers = inputs == 6;
        for (int i = 0; a_in_registers && i < 4; i++) a[i] = static_cast<const uint32_t*>(bound.in[i]) + first_thread;
        uint64_t descriptors[2] = {};
        for (int i = a_in_registers; i < 2; i++) {
            auto* given = static_cast<const uint64_t*>(bound.in[i == 1 ? inputs - 2 : 0]) + first_thread;
            descriptors[i] = given[0];
            for (unsigned thread = 1; thread < group_threads; thread++)
                if (given[thread] != given[0]) return fail("another descriptor", first_thread + thread);
        }
        bool accumulate = static_cast<const uint8_t*>(bound.in[inputs - 1])[first_thread];
        // What the one before it left in these registers, if that goes on too.
        Products made{product_groups + 1, first_thread, &one, {}};
        made.values.resize(size_t(group_threads) * one.out.size());
        const Products* before = nullptr;
        for (auto& other : products)
            if (other.first_thread == first_thread && same_registers(*other.instruction, one)) before = &other;
        uint32_t* d[256];
        for (size_t i = 0; i < one.out.size(); i++) {
            d[i] = &made.values[i * group_threads];
            const uint32_t* from = before ? &before->values[i * group_threads]
                                          : static_cast<const uint32_t*>(bound.out[i]) + first_thread;
            std::memcpy(d[i], from, 4 * group_threads);
        }
        Reader reader(shared, product_groups + 1);
        WgmmaOperands operands{d, a_in_registers ? a : nullptr, descriptors[0], descriptors[1], accumulate};
        operands.negate_a = one.number & 1;
        operands.negate_b = one.number >> 1 & 1;
        operands.transposed_a = one.number & 4;
        operands.transposed_b = one.number & 8;
        std::string wrong = multiply(wgmma, operands, reader);
        if (!wrong.empty()) return fail(address_text(reader.at) + ": " + wrong);
        for (size_t i = 0; i < one.out.size(); i++)
            std::fill_n(static_cast<uint32_t*>(bound.out[i]) + first_thread, group_threads, not_there);
        products.push_back(std::move(made));
    }
    return true;
}

bool Block::same_registers(const Instruction& a, const Instruction& b) {
    auto same = [](Operand x, Operand y) { return x.index == y.index; };
    return a.out.size() == b.out.size() && std::equal(a.out.begin(), a.out.end(), b.out.begin(), same);
}

// Whether it reads or writes registers that wgmma still computes; another wgmma may add to all of them.
bool Block::is_pending(const Instruction& one, std::string& name) const {
    if (one.kind == Kind::wgmma_wait) return false;
    for (auto& product : products) {
        bool same = one.kind == Kind::wgmma && same_registers(*product.instruction, one);
        for (auto& out : product.instruction->out) {
            auto is = [&](Operand other) { return other.bytes == 4 && other.index == out.index; };
            bool reads = std::any_of(one.in.begin(), one.in.end(), is);
            bool writes = !same && std::any_of(one.out.begin(), one.out.end(), is);
            if (reads || writes) return name = function.names[4][out.index], true;
        }
    }
    return false;
}

bool Block::end_products(uint64_t left) {
    if (product_groups <= left) return true;
    uint64_t last = product_groups - left;  // groups are counted from 1
    size_t kept = 0;
    for (size_t place = 0; place < products.size(); place++) {
        Products& product = products[place];
        bool ends = product.group <= last;
        for (size_t i = 0; i < product.instruction->out.size() && ends; i++) {
            auto* into = static_cast<uint32_t*>(array(product.instruction->out[i])) + product.first_thread;
            std::memcpy(into, &product.values[i * group_threads], 4 * group_threads);
        }
        // Registers to which a later group adds are still not there.
        if (!ends) {
            for (auto& out : product.instruction->out)
                std::fill_n(static_cast<uint32_t*>(array(out)) + product.first_thread, group_threads, not_there);
            if (kept != place) products[kept] = std::move(product);
            kept++;
        }
    }
    products.resize(kept);
    shared.complete_async(last);
    return true;
}

}  // namespace software_gpu
