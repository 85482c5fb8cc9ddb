#include "block.h"

#include <cstdlib>
#include <cstring>

namespace software_gpu {
namespace {

void fill(void* array, uint8_t bytes, size_t count, uint64_t value) {
    for (size_t i = 0; i < count; i++) std::memcpy(static_cast<uint8_t*>(array) + i * bytes, &value, bytes);
}

unsigned rounded(unsigned count, unsigned to) { return (count + to - 1) / to * to; }

}  // namespace

Block::Block(const Function& function, const Launch& launch, Memory& memory, Ordering& ordering)
    : function(function),
      launch(launch),
      memory(memory),
      threads(launch.block[0] * launch.block[1] * launch.block[2]),
      lanes(rounded(threads, 32)),
      stride(rounded(threads, 64)),
      accesses(memory, ordering, launch.programmatic) {
    bind();
    active.assign(stride, 0);
    guarded.assign(stride, 0);
    ended.assign(stride, 0);
    addresses.assign(stride, 0);
    committed.assign(stride, 0);
    auto* room = static_cast<uint8_t*>(std::aligned_alloc(64, 6 * 8 * stride));
    std::memset(room, 0, 6 * 8 * stride);
    scratch_memory.reset(room);
    for (int i = 0; i < 6; i++) scratch[i] = room + i * 8 * stride;
}

void Block::bind() {
    size_t bytes = 0, operands = 0, results = 0;
    for (auto& [width, count] : function.registers) bytes += size_t(count) * stride * width;
    registers.reset(static_cast<uint8_t*>(std::aligned_alloc(64, bytes + 64)));
    std::memset(registers.get(), 0xff, bytes);  // what nobody wrote is no number
    size_t place = 0;
    for (auto& [width, count] : function.registers) {
        first[width] = registers.get() + place;
        if (width == 1) std::memset(first[1], 0, size_t(count) * stride);
        place += size_t(count) * stride * width;
    }
    for (auto& one : function.instructions) operands += one.in.size(), results += one.out.size();
    ins.reserve(operands);
    outs.reserve(results);
    for (auto& one : function.instructions) {
        Bound bound{&one, outs.data() + outs.size(), ins.data() + ins.size(), nullptr, one.operation != nullptr};
        if (one.guarded) bound.guard = first[1] + size_t(one.guard) * stride;
        for (auto& out : one.out) outs.push_back(array(out));
        for (auto& in : one.in) ins.push_back(array(in));
        for (size_t i = 0; i < one.out.size() && bound.direct; i++) {
            bound.direct = one.out[i].bytes == one.operation->out_bytes[i] && !one.second_is_not;
            for (auto* in : std::vector<const void*>(bound.in, bound.in + one.in.size()))
                bound.direct &= in != bound.out[i];
        }
        for (size_t i = 0; i < one.in.size() && bound.direct; i++)
            bound.direct = one.in[i].bytes == one.operation->in_bytes[i];
        code.push_back(bound);
    }
    for (auto& one : function.constants) fill(array(one.at), one.at.bytes, stride, one.value);
    for (uint8_t width : {1, 2, 4, 8}) {
        written[width].resize(function.registers.count(width) ? function.registers.at(width) : 0);
        for (uint32_t index : function.tracked[width]) written[width][index].assign(stride, 0);
    }
    unsigned end = 0;
    for (auto& one : function.parameters) end = one.offset + one.bytes;
    parameters.resize(end);
    for (size_t i = 0; i < function.parameters.size(); i++)
        std::memcpy(&parameters[function.parameters[i].offset], launch.parameters[i], function.parameters[i].bytes);
}

void Block::set_special(const SpecialRegister& one) {
    auto* values = static_cast<uint32_t*>(array(one.at));
    const unsigned(&size)[3] = launch.block;
    for (unsigned i = 0; i < stride; i++) {
        unsigned lane = i % 32;
        switch (one.special) {
            case Special::tid_x: values[i] = i % size[0]; break;
            case Special::tid_y: values[i] = i / size[0] % size[1]; break;
            case Special::tid_z: values[i] = i / size[0] / size[1]; break;
            case Special::ntid_x: values[i] = size[0]; break;
            case Special::ntid_y: values[i] = size[1]; break;
            case Special::ntid_z: values[i] = size[2]; break;
            case Special::ctaid_x: values[i] = place_in_grid[0]; break;
            case Special::ctaid_y: values[i] = place_in_grid[1]; break;
            case Special::ctaid_z: values[i] = place_in_grid[2]; break;
            case Special::nctaid_x: values[i] = launch.grid[0]; break;
            case Special::nctaid_y: values[i] = launch.grid[1]; break;
            case Special::nctaid_z: values[i] = launch.grid[2]; break;
            case Special::laneid: values[i] = lane; break;
            case Special::warpid: values[i] = i / 32; break;
            case Special::nwarpid: values[i] = lanes / 32; break;
            case Special::lanemask_eq: values[i] = 1u << lane; break;
            case Special::lanemask_lt: values[i] = (1u << lane) - 1; break;
            case Special::lanemask_le: values[i] = (2u << lane) - 1; break;
            case Special::lanemask_gt: values[i] = ~((2u << lane) - 1); break;
            case Special::lanemask_ge: values[i] = ~((1u << lane) - 1); break;
        }
    }
}

bool Block::fail(const std::string& what, unsigned thread) {
    return fail(what + ", thread " + std::to_string(thread));
}

bool Block::fail(const std::string& what) {
    const Instruction& one = *code[at].instruction;
    std::string block;
    for (unsigned i : place_in_grid) block += (block.empty() ? "" : ",") + std::to_string(i);
    error = function.name + ": line " + std::to_string(one.line) + ": " + one.opcode + ": " + what + ", block (" +
            block + ")";
    return false;
}

bool Block::run(uint32_t number) {
    unsigned row = number / launch.grid[0];
    place_in_grid[0] = number % launch.grid[0];
    place_in_grid[1] = row % launch.grid[1];
    place_in_grid[2] = row / launch.grid[1];
    accesses.start(number);
    for (auto& one : function.specials) set_special(one);
    for (auto& width : written)
        for (auto& one : width) std::fill(one.begin(), one.end(), 0);
    shared.start(function.static_shared + launch.dynamic_shared);
    local.assign(size_t(function.local_bytes) * stride, 0xff);
    std::fill(committed.begin(), committed.end(), 0);
    std::fill(active.begin(), active.end(), 0);
    std::fill_n(active.begin(), threads, 1);
    all = true;
    at = 0;
    executed = 0;
    gone = 0;
    others.clear();
    waiting.clear();
    stalled.clear();
    std::fill(ended.begin(), ended.end(), 0);
    copies.clear();
    products.clear();
    product_groups = 0;
    not_fenced.clear();
    while (at < code.size())
        if (!step()) return false;
    at = uint32_t(code.size() - 1);
    if (!waiting.empty()) {
        at = waiting[0].place;
        return fail("a barrier that only " + std::to_string(threads - gone) + " threads reach");
    }
    return accesses.has_waited() || fail("the block ends without waiting for the launch before");
}

}  // namespace software_gpu
