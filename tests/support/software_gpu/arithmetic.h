// Arithmetic on integers and on 32-bit floats, comparisons of integers, logic, shifts and moves.

#pragma once

#include "operation.h"

namespace software_gpu {

// The instruction with this full name, such as "mad.lo.s32", or null.
const Operation* find_arithmetic(std::string_view opcode);

}  // namespace software_gpu
