// Decoded PTX: what a block executes.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "operation.h"
#include "ptx_text.h"
#include "tensor.h"

namespace software_gpu {

// A register by its width; constants and special registers are registers that no instruction writes.
struct Operand {
    uint8_t bytes = 0;  // 0: there is none, or the result is not wanted
    uint32_t index = 0;
};

enum class Kind : uint8_t {
    elementwise, pack, unpack, load_parameter,
    branch, exit, trap, nothing, wait_for_launch,
    barrier, warp_barrier,
    load, store, atomic,
    copy_async, copy_commit, copy_wait,
    shuffle, vote, reduce, active_mask,
    mma, move_matrices, wgmma, wgmma_fence, wgmma_commit, wgmma_wait, proxy_fence,
};  // fmt: skip

enum class Space : uint8_t { global, shared, local };

enum class Special : uint8_t {
    tid_x, tid_y, tid_z, ntid_x, ntid_y, ntid_z, ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_y, nctaid_z,
    laneid, warpid, nwarpid, lanemask_eq, lanemask_lt, lanemask_le, lanemask_gt, lanemask_ge,
};

enum class Combine : uint8_t { add, min, max, and_, or_, xor_, exch, inc, dec, cas, all, any, uni, ballot };
enum class Order : uint8_t { weak, relaxed, acquire, release, acq_rel };

struct Instruction {
    Kind kind = Kind::nothing;
    uint32_t line = 0;
    bool guarded = false, guard_negated = false;
    bool checks_inputs = false;   // some input may be a register that was not written
    bool marks_outputs = false;   // some output may be read where it is not certain to be written
    bool second_is_not = false;   // setp p|q
    bool takes_warps = false;     // works on whole warps
    bool feeds_wgmma = false;     // writes registers of one
    uint32_t guard = 0;           // a predicate
    const Operation* operation = nullptr;
    std::vector<Operand> out, in;  // of an access with an address: in[0] is its base
    int64_t offset = 0;
    Space space = Space::global;
    Space source_space = Space::global;
    Order order = Order::weak;
    Combine combine = Combine::add;
    char type = 'b';          // b, u, s or f
    uint8_t element = 0;      // bytes of one element
    uint32_t number = 0;      // target of a branch, groups to wait for, ...
    Mma mma{};
    Wgmma wgmma{};
    MatrixMove matrices{};
    std::string opcode;
};

struct SpecialRegister {
    Special special;
    Operand at;
};
struct Constant {
    Operand at;
    uint64_t value;
};

struct Function {
    std::string name;
    uint32_t required_threads = 0;
    std::vector<ParameterText> parameters;
    std::vector<Instruction> instructions;
    std::map<uint8_t, uint32_t> registers;  // how many of each width, constants and special registers included
    std::vector<Constant> constants;
    std::vector<SpecialRegister> specials;
    std::vector<uint32_t> tracked[9];       // by width: registers of which it is noted at run time who has written them
    std::vector<std::string> names[9];      // by width: of registers, as they are written
    uint32_t local_bytes = 0, static_shared = 0;  // dynamic shared memory begins where static ends
    bool uses_dynamic_shared = false;
};

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

struct Module {
    std::string target;  // such as sm_90a
    std::vector<std::unique_ptr<Function>> functions;
    struct Table {
        std::string name;
        std::unique_ptr<uint8_t, Free> content;
        uint64_t bytes;
    };
    std::vector<Table> tables;  // .global and .const variables

    const Function* find(std::string_view name) const;
};

// Null with a message that names the line, and the instruction if it is not known.
std::unique_ptr<Module> load(std::string_view ptx, std::string& error);

}  // namespace software_gpu
