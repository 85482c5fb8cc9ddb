// The machine for tests that hand it PTX and arrays.

#include <cstdio>

#include "machine.h"

using namespace software_gpu;

namespace {

void tell(char* into, size_t room, const std::string& text) { std::snprintf(into, room, "%s", text.c_str()); }

}  // namespace

EXPORT void* module_load(const char* ptx, char* error, size_t room) {
    std::string wrong;
    auto module = load(ptx, wrong);
    tell(error, room, wrong);
    return module.release();
}

EXPORT void module_free(void* module) { delete static_cast<Module*>(module); }

struct Work {
    const char* function;
    unsigned grid[3], block[3], dynamic_shared, seed;
    void** parameters;
    const uint64_t* ranges;  // begin and bytes of each allocation
    uint64_t range_count, most_instructions;
};

EXPORT bool module_launch(const void* module, const Work* work, char* error, size_t room) {
    Memory memory;
    for (uint64_t i = 0; i < work->range_count; i++) memory.add(work->ranges[2 * i], work->ranges[2 * i + 1]);
    Launch given{};
    given.function = work->function;
    for (int i = 0; i < 3; i++) given.grid[i] = work->grid[i], given.block[i] = work->block[i];
    given.dynamic_shared = work->dynamic_shared;
    given.parameters = work->parameters;
    given.seed = work->seed;
    if (work->most_instructions) given.most_instructions = work->most_instructions;
    std::string wrong;
    bool done = launch(*static_cast<const Module*>(module), given, memory, wrong);
    tell(error, room, wrong);
    return done;
}
