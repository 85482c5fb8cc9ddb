// Matrix instructions: of a warp (mma, ldmatrix, stmatrix) and of a group of four warps (wgmma).
//
// Operands are lists of registers of 32 bits; each is an array over the 32 threads of the warp or 128 of the group.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace software_gpu {

enum class Element : uint8_t { f16, bf16, tf32, e4m3, e5m2, s8, u8, f32, s32 };

// mma.sync: d = a * b + c. All four may be the same registers.
struct Mma {
    int m = 0, n = 0, k = 0;  // m is 0 if there is no such instruction
    Element a, b, c, d;
    int a_registers, b_registers, c_registers, d_registers;
    bool saturated;
};
Mma find_mma(std::string_view opcode);
void multiply(
    const Mma& mma, uint32_t* const* d, const uint32_t* const* a, const uint32_t* const* b, const uint32_t* const* c);

// ldmatrix and stmatrix of m8n8.b16: rows[8 i + j] are the 16 bytes of row j of matrix i, register i has that matrix.
struct MatrixMove {
    int count = 0;  // matrices, and registers; 0 if there is no such instruction
    bool transposed;
    bool store;
};
MatrixMove find_matrix_move(std::string_view opcode);
void load_matrices(const MatrixMove& move, uint32_t* const* registers, const uint8_t* const* rows);
void store_matrices(const MatrixMove& move, const uint32_t* const* registers, uint8_t* const* rows);

// wgmma.mma_async: d = a * b (+ d). As the instruction is asynchronous, its caller decides when d changes.
struct Wgmma {
    int n = 0, k = 0;  // n is 0 if there is no such instruction
    Element a, b, d;
    int registers;  // of d; a in registers has 4
};
Wgmma find_wgmma(std::string_view opcode);

// Bytes of shared memory, for the caller to check; says what is wrong with reading them, or nullptr.
struct SharedReader {
    virtual const char* read(uint32_t start, uint32_t bytes, const uint8_t** content) = 0;

protected:
    ~SharedReader() = default;
};

struct WgmmaOperands {
    uint32_t* const* d;
    const uint32_t* const* a;  // registers, or nullptr: then a_descriptor
    uint64_t a_descriptor, b_descriptor;
    bool accumulate;                 // scale-d
    int negate_a = 0, negate_b = 0;  // imm-scale is -1
    bool transposed_a = false, transposed_b = false;
};
// What is wrong with it, or empty.
std::string multiply(const Wgmma& wgmma, const WgmmaOperands& operands, SharedReader& shared);

}  // namespace software_gpu
