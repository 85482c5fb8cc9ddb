// Instructions on floats of all sizes, conversions, and those that move bits.
#pragma once

#include <string_view>

#include "operation.h"

namespace software_gpu {

// The operation of an opcode such as "cvt.rn.bf16x2.f32"; nullptr if there is none here.
//
// Integers of 8 bits lie in the low half of 16; as results they are extended to those by their sign. `setp` has one
// result, and its form with `.and`, `.or` or `.xor` a third input, a predicate.
const Operation* find_number(std::string_view opcode);

}  // namespace software_gpu
