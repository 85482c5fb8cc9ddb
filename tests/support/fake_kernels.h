// What the libcuda without a GPU runs: a device and its code, which one of two files defines. fake_kernels.cpp has
// functions of C++ for kernels, software_gpu/kernels.cpp runs PTX.

#pragma once

#include <cuda.h>

#include <cstddef>
#include <functional>
#include <string>

namespace fake {

struct Device {
    const char* name;
    int major, minor, multiprocessors, shared_bytes;  // the last of a block
    size_t bytes;
};
extern Device device;

struct Module;
struct Kernel;

// A module of an image; otherwise what the log says.
CUresult load(const char* image, Module** made, std::string& said);
void unload(Module* module);
// nullptr if there is none.
const Kernel* find(Module* module, const char* name);
// The work of a launch, which refers to nothing that is given here.
CUresult prepare(const Kernel& kernel, const CUlaunchConfig& config, void** parameters, std::function<void()>& work);

void allocated(CUdeviceptr begin, size_t bytes);
void freed(CUdeviceptr begin);

}  // namespace fake
