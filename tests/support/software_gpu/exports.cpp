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

EXPORT void* memory_make(bool notes_accesses) { return new Memory(notes_accesses); }
EXPORT void memory_free(void* memory) { delete static_cast<Memory*>(memory); }
EXPORT void memory_add(void* memory, uint64_t begin, uint64_t bytes) {
    if (!static_cast<Memory*>(memory)->find(begin, bytes)) static_cast<Memory*>(memory)->add(begin, bytes);
}
// For each of `bytes` bytes, whether the last launch has written it. False: the memory is not known.
EXPORT bool memory_written(void* memory, uint64_t begin, uint64_t bytes, uint8_t* written) {
    auto& all = *static_cast<Memory*>(memory);
    Range* range = all.find(begin, bytes);
    if (!range || !range->writers) return false;
    for (uint64_t i = 0; i < bytes; i++)
        written[i] = Mark::block(range->writers.get()[begin - range->begin + i]) >= all.first_block;
    return true;
}

struct Work {
    const char* function;
    unsigned grid[3], block[3], dynamic_shared, seed;
    void** parameters;
    uint64_t most_instructions;  // 0: as many as launches have by themselves
    bool programmatic;
};

EXPORT bool module_launch(const void* module, void* memory, const Work* work, char* error, size_t room) {
    Launch given{};
    given.function = work->function;
    for (int i = 0; i < 3; i++) given.grid[i] = work->grid[i], given.block[i] = work->block[i];
    given.dynamic_shared = work->dynamic_shared;
    given.parameters = work->parameters;
    given.seed = work->seed;
    given.programmatic = work->programmatic;
    if (work->most_instructions) given.most_instructions = work->most_instructions;
    std::string wrong;
    bool done = launch(*static_cast<const Module*>(module), given, *static_cast<Memory*>(memory), wrong);
    tell(error, room, wrong);
    return done;
}
