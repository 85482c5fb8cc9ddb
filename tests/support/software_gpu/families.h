// The families of operations that `find_number` looks through: each finds what it knows.
#pragma once

#include "elementwise.h"

namespace software_gpu {

Found find_float(const Opcode& opcode);        // f32 and f64
Found find_small_float(const Opcode& opcode);  // f16, bf16 and pairs of them
Found find_comparison(const Opcode& opcode);   // setp of floats, testp
Found find_conversion(const Opcode& opcode);   // cvt
Found find_bits(const Opcode& opcode);         // prmt, lop3, fields, counts, dp4a

}  // namespace software_gpu
