// Which registers are certain to have been written where they are read.

#pragma once

#include "module.h"

namespace software_gpu {

// Sets `checks_inputs` and `marks_outputs` of the instructions, and `tracked` of the function: only what can't be seen
// from the text alone is looked at when it runs.
void find_definitions(Function& function);

}  // namespace software_gpu
