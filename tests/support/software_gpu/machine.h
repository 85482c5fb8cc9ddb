// Launches a function of a module: its blocks one after another, in an order that nobody should depend on.

#pragma once

#include <cstdint>
#include <string>

#include "memory.h"
#include "module.h"

namespace software_gpu {

struct Launch {
    const char* function;
    unsigned grid[3], block[3];
    unsigned dynamic_shared;  // bytes
    void** parameters;        // where the value of each is, as for cuLaunchKernel
    unsigned seed = 0;        // of the order of the blocks
    bool programmatic = false;  // it may begin before the launch before it has ended (programmatic dependent launch)
    uint64_t most_instructions = uint64_t(1) << 28;  // of one block, before it counts as one without an end
};

// False with a message that names the kernel, the line of the PTX, the block and the thread.
bool launch(const Module& module, const Launch& launch, Memory& memory, std::string& error);

}  // namespace software_gpu
