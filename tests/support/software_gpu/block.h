// A block of threads in lock-step: each instruction is executed for all threads that stand at the lowest place.

#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "machine.h"
#include "memory.h"
#include "module.h"
#include "shared.h"

namespace software_gpu {

// An instruction with the arrays of its registers in place of their numbers.
struct Bound {
    const Instruction* instruction;
    void** out;
    const void** in;
    const uint8_t* guard;
    bool direct;  // an operation that may write its registers at once
};

// Threads that stand at one place.
struct Group {
    uint32_t place;
    std::vector<uint8_t> threads;  // 0 or 1
};

// What one host thread needs to execute blocks of one launch, one after another.
class Block {
public:
    Block(const Function& function, const Launch& launch, Memory& memory, Ordering& ordering);

    bool run(uint32_t number);  // false: `error` says why
    std::string error;

private:
    const Function& function;
    const Launch& launch;
    Memory& memory;
    const unsigned threads;  // of the block
    const unsigned lanes;    // those rounded up to whole warps
    const unsigned stride;   // of the arrays of registers
    unsigned place_in_grid[3] = {};

    std::unique_ptr<uint8_t, Free> registers, scratch_memory;
    uint8_t* first[9] = {};  // register, by width
    std::vector<void*> outs;
    std::vector<const void*> ins;
    std::vector<Bound> code;
    std::vector<uint8_t> parameters;
    void* scratch[6] = {};
    std::vector<std::vector<uint8_t>> written[9];  // by width and register: by whom, if that is noted

    // The threads that execute: all of the block, or those of `active`.
    bool all = true;
    std::vector<uint8_t> active, guarded;
    const uint8_t* mask = nullptr;  // of this instruction: null for all threads
    uint32_t at = 0;                // this instruction
    uint64_t executed = 0;
    unsigned gone = 0;              // threads that have ended
    std::vector<uint8_t> ended;
    // That stand elsewhere; at a barrier; at an instruction of whole warps until the rest of them comes.
    std::vector<Group> others, waiting, stalled;

    Shared shared;
    std::vector<uint8_t> local;
    std::vector<uint64_t> addresses;
    Range* range = nullptr;  // the allocation that was accessed last
    Accesses accesses;

    struct Copy {  // that goes on in the background
        uint32_t thread, group, target, bytes, valid;
        uint64_t source;
    };
    std::vector<Copy> copies;
    std::vector<uint32_t> committed;  // groups, by thread

    struct Products {  // of a wgmma that goes on
        uint64_t group;
        unsigned first_thread;
        const Instruction* instruction;
        std::vector<uint32_t> values;  // [register][thread of the warp group]
    };
    std::vector<Products> products;
    uint64_t product_groups = 0;  // that were committed
    std::set<uint32_t> not_fenced;  // registers of 32 bits that wgmma uses and others wrote since wgmma.fence

    void bind();
    void* array(Operand one) const {
        return one.bytes ? first[one.bytes] + size_t(one.index) * stride * one.bytes : nullptr;
    }
    bool on(unsigned thread) const { return !mask || mask[thread]; }
    void set_special(const SpecialRegister& one);
    bool fail(const std::string& what, unsigned thread);
    bool fail(const std::string& what);  // of no thread in particular

    // Control.
    bool step();
    bool execute(const Bound& bound);
    bool guard(const Bound& bound);  // whether any thread executes
    void branch(const Instruction& one);
    void leave();
    void go_on();  // the threads at the lowest place
    static void put_into(std::vector<Group>& groups, uint32_t place, const std::vector<uint8_t>& those);
    bool stall();  // whether the threads that are here wait for the rest of their warps
    bool whole_warps() const;
    bool wait_at_barrier();
    void pass_barrier();
    bool check_guard(const Bound& bound);
    bool check_inputs(const Bound& bound);
    void mark_outputs(const Bound& bound);
    bool is_pending(const Instruction& one, std::string& name) const;

    // Thread by thread.
    void elementwise(const Bound& bound);
    void blend(void* target, const void* from, uint8_t bytes);
    void pack(const Bound& bound);
    void unpack(const Bound& bound);
    void load_parameter(const Bound& bound);

    // Memory.
    bool find_addresses(const Bound& bound, unsigned input, int64_t offset, unsigned bytes);
    std::string address_text(uint64_t address) const;
    uint8_t* global(uint64_t address, unsigned bytes, unsigned thread, bool writes, bool ordered);
    bool wrong_place(uint64_t address, unsigned bytes, const char* wrong, unsigned thread);
    const uint8_t* content(const Instruction& one, unsigned thread, unsigned bytes);
    bool put(const Instruction& one, unsigned thread, unsigned bytes, const uint8_t* value);
    bool load(const Bound& bound);
    bool store(const Bound& bound);
    bool atomic(const Bound& bound);
    bool begin_copies(const Bound& bound);
    bool end_copies(const Instruction& one);

    // Lanes.
    uint32_t active_lanes(unsigned warp) const;
    template <class F>
    bool by_warp(const Bound& bound, size_t members_input, F&& work);
    bool warp_barrier(const Bound& bound);
    bool shuffle(const Bound& bound);
    bool vote(const Bound& bound);
    bool reduce(const Bound& bound);
    void active_mask(const Bound& bound);

    // Matrices.
    bool whole(unsigned warp, unsigned warps, bool& here);
    bool mma(const Bound& bound);
    bool move_matrices(const Bound& bound);
    static bool same_registers(const Instruction& a, const Instruction& b);
    bool wgmma(const Bound& bound);
    bool end_products(uint64_t left);
};

}  // namespace software_gpu
