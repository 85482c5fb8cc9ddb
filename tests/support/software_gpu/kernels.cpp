// Code for the libcuda without a GPU: an image is a text of PTX, which the machine runs.

#pragma GCC visibility push(default)
#include "../fake_kernels.h"
#pragma GCC visibility pop

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../fake_driver.h"
#include "machine.h"

namespace fake {

Device device{"Software GPU", 12, 0, 170, 101376, size_t(16) << 30};

// Functions stay when their module is unloaded: who asked for one may hold it still.
struct Kernel {
    std::shared_ptr<const software_gpu::Module> module;
    const software_gpu::Function* function;
};
struct Module {
    std::shared_ptr<const software_gpu::Module> loaded;
};

namespace {

std::unique_ptr<software_gpu::Memory> memory = std::make_unique<software_gpu::Memory>();
size_t allocations = 0;
unsigned launches = 0;  // the order of the blocks is another each time

// sm_90a runs on nothing but 9.0, sm_80 on all from there on.
bool runs_here(const std::string& target) {
    if (target.compare(0, 3, "sm_") != 0) return false;
    char* end;
    long level = std::strtol(target.c_str() + 3, &end, 10), own = 10 * device.major + device.minor;
    return *end ? level == own : level <= own;
}

// The parameters of a launch, which outlive those that were given.
struct Values {
    std::vector<std::vector<char>> held;
    std::vector<void*> places;

    Values(const software_gpu::Function& function, void** given) {
        for (size_t at = 0; at < function.parameters.size(); at++) {
            auto* from = static_cast<char*>(given[at]);
            held.emplace_back(from, from + function.parameters[at].bytes);
        }
        for (auto& value : held) places.push_back(value.data());
    }
    Values(const Values&) = delete;
};

// Memory for the kernel's own use, which the compiler appends to the parameters, is not given to it.
bool scratch_is_null(const software_gpu::Function& function, void** given) {
    size_t count = function.parameters.size();
    for (size_t at = count < 2 ? 0 : count - 2; at < count; at++) {
        uint64_t value = 0;
        std::memcpy(&value, given[at], function.parameters[at].bytes);
        if (value != 0) return false;
    }
    return true;
}

}  // namespace

CUresult load(const char* image, Module** made, std::string& said) {
    if (std::memcmp(image, "\x7f" "ELF", 4) == 0)
        return said = "machine code, which this device does not run", CUDA_ERROR_NO_BINARY_FOR_GPU;
    std::shared_ptr<const software_gpu::Module> loaded = software_gpu::load(image, said);
    if (loaded == nullptr) return CUDA_ERROR_INVALID_PTX;
    if (!runs_here(loaded->target))
        return said = loaded->target + " does not run on this device", CUDA_ERROR_INVALID_PTX;
    *made = new Module{loaded};
    return CUDA_SUCCESS;
}

void unload(Module* module) { delete module; }

const Kernel* find(Module* module, const char* name) {
    auto* function = module->loaded->find(name);
    return function ? new Kernel{module->loaded, function} : nullptr;
}

CUresult prepare(const Kernel& kernel, const CUlaunchConfig& config, void** parameters, std::function<void()>& work) {
    auto& function = *kernel.function;
    if (function.static_shared + config.sharedMemBytes > unsigned(device.shared_bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (config.blockDimX > 1024 || config.gridDimY > 65535 || config.gridDimZ > 65535) return CUDA_ERROR_INVALID_VALUE;
    if (!scratch_is_null(function, parameters)) return CUDA_ERROR_INVALID_VALUE;
    work = [module = kernel.module, &function, values = std::make_shared<Values>(function, parameters), config] {
        software_gpu::Launch launch{};
        launch.function = function.name.c_str();
        launch.grid[0] = config.gridDimX, launch.grid[1] = config.gridDimY, launch.grid[2] = config.gridDimZ;
        launch.block[0] = config.blockDimX, launch.block[1] = launch.block[2] = 1;
        launch.dynamic_shared = config.sharedMemBytes;
        launch.parameters = values->places.data();
        launch.seed = ++launches;
        launch.programmatic = config.numAttrs != 0;
        std::string error;
        if (!software_gpu::launch(*module, launch, *memory, error)) fail(error);
    };
    return CUDA_SUCCESS;
}

void allocated(CUdeviceptr begin, size_t bytes) { memory->add(begin, bytes), allocations++; }
void freed(CUdeviceptr begin) { memory->remove(begin), allocations--; }

}  // namespace fake

// What tests ask of it: to be a GPU of another capability, and whether to look for races in its memory. 0 while some of
// that is allocated.
EXPORT int software_gpu_become(int major, int minor, int shared_bytes, int finds_races) {
    fake::device.major = major, fake::device.minor = minor, fake::device.shared_bytes = shared_bytes;
    if (fake::memory->notes_accesses == (finds_races != 0)) return 1;
    if (fake::allocations) return 0;
    return fake::memory = std::make_unique<software_gpu::Memory>(finds_races != 0), 1;
}
