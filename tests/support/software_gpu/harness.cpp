// What tests call of numbers and matrices.
#include <vector>

#include "numbers.h"
#include "tensor.h"

using namespace software_gpu;

namespace {

template <class T>
std::vector<T*> lanes_of(T* values, int registers, int threads) {
    std::vector<T*> found;
    for (int at = 0; at < registers; at++) found.push_back(values + at * threads);
    return found;
}

struct Bytes : SharedReader {
    const uint8_t* content;
    uint32_t size;
    Bytes(const uint8_t* content, uint32_t size) : content(content), size(size) {}
    const char* read(uint32_t start, uint32_t bytes, const uint8_t** found) override {
        if (start > size || bytes > size - start) return "outside";
        return *found = content + start, nullptr;
    }
};

}  // namespace

// 0: there is no such opcode; else the bytes of its results and operands, one in each 4 bits, results first.
EXPORT uint64_t number_signature(const char* opcode) {
    auto* found = find_number(opcode);
    if (found == nullptr) return 0;
    uint64_t signature = found->out_bytes[0];
    for (int at = 0; at < found->ins; at++) signature |= uint64_t(found->in_bytes[at]) << (4 * at + 4);
    return signature;
}
EXPORT void run_number(const char* opcode, uint64_t n, void** out, const void** in) {
    find_number(opcode)->run(n, out, in);
}

EXPORT int run_mma(const char* opcode, uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
    Mma mma = find_mma(opcode);
    if (mma.m == 0) return 0;
    multiply(
        mma, lanes_of(d, mma.d_registers, 32).data(), lanes_of(a, mma.a_registers, 32).data(),
        lanes_of(b, mma.b_registers, 32).data(), lanes_of(c, mma.c_registers, 32).data());
    return mma.m * 1000000 + mma.n * 1000 + mma.k;
}

// Rows are those of `memory`, in order.
EXPORT int move_matrices(const char* opcode, uint32_t* registers, uint8_t* memory) {
    auto move = find_matrix_move(opcode);
    auto rows = lanes_of(memory, 8 * move.count, 16);
    auto held = lanes_of(registers, move.count, 32);
    if (move.store) store_matrices(move, held.data(), rows.data());
    else load_matrices(move, held.data(), rows.data());
    return move.count;
}

// The registers of d; -1 if something is wrong. `a` may be null.
EXPORT int run_wgmma(
    const char* opcode, uint32_t* d, const uint32_t* a, uint64_t a_descriptor, uint64_t b_descriptor, int flags,
    const uint8_t* memory, uint32_t bytes) {
    Wgmma wgmma = find_wgmma(opcode);
    if (wgmma.n == 0) return 0;
    auto results = lanes_of(d, wgmma.registers, 128);
    std::vector<const uint32_t*> factors;
    if (a != nullptr) factors = lanes_of(a, 4, 128);
    Bytes shared(memory, bytes);
    WgmmaOperands operands{results.data(), a ? factors.data() : nullptr, a_descriptor, b_descriptor, (flags & 1) != 0,
                           (flags & 2) != 0, (flags & 4) != 0, (flags & 8) != 0, (flags & 16) != 0};
    return multiply(wgmma, operands, shared).empty() ? wgmma.registers : -1;
}
