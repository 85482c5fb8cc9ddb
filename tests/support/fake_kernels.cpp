// Code for the libcuda without a GPU: an image is the word "fake", its kernels are the functions of this file.

#pragma GCC visibility push(default)
#include "fake_kernels.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "fake_driver.h"

#ifndef FAKE_BYTES
#define FAKE_BYTES (size_t(1) << 30)
#endif

// The kernels of tests/support/tiny_gpu_program.py.

namespace {

template <class T>
T* pointer(void* value) {
    return static_cast<T*>(value);
}
int number(void* value) { return static_cast<int>(reinterpret_cast<size_t>(value)); }

void halves(void** values, unsigned row) {
    auto *source = pointer<float>(values[0]) + row * 8, *target = pointer<float>(values[1]) + row * 8;
    for (int half = 0; half < 4; half++) target[2 * half] = source[half], target[2 * half + 1] = source[4 + half];
}

void write(void** values, unsigned row) {
    pointer<float>(values[2])[pointer<int64_t>(values[1])[row]] = float(pointer<int64_t>(values[0])[row]);
}

void sum(void** values, unsigned row) {
    auto *positions = pointer<int64_t>(values[0]), *starts = pointer<int64_t>(values[1]);
    auto *blocks = pointer<int64_t>(values[2]);
    int sequence = 0;
    while (sequence + 1 < number(values[7]) && starts[sequence + 1] <= int64_t(row)) sequence++;
    float sum = 0;
    for (int64_t place = 0; place <= positions[row]; place++)
        sum += pointer<float>(values[3])[blocks[sequence * number(values[8]) + place / 16] * 16 + place % 16];
    pointer<float>(values[4])[row] = sum;
    if (row == 0) *pointer<int64_t>(values[5]) += number(values[6]);
}

void logits(void** values, unsigned row) {
    int64_t at = pointer<int64_t>(values[1])[row], token = pointer<int64_t>(values[0])[at];
    for (int column = 0; column < 7; column++)
        pointer<float>(values[5])[row * 7 + column] =
            pointer<float>(values[2])[token * 8 + column] +
            pointer<float>(values[3])[column] * pointer<float>(values[4])[at];
}

// Those of compiler/bench/gpu_probes.py: of what is read the last vector is looked at.

void read(void** values, unsigned) {
    auto end = reinterpret_cast<CUdeviceptr>(values[0]) + 16 * static_cast<unsigned>(number(values[2]));
    if (!fake::inside(end - 16, 16) || !fake::inside(reinterpret_cast<CUdeviceptr>(values[1]), 4)) std::abort();
}
void nothing(void**, unsigned) {}

}  // namespace

namespace fake {

Device device{"Fake H200", 9, 0, 132, 232448, FAKE_BYTES};

struct Kernel {
    void (*body)(void** values, unsigned x);
    int parameters;
};
struct Module {
    const std::map<std::string, Kernel> kernels = {
        {"read", {read, 3}},     {"nothing", {nothing, 0}}, {"halves_0", {halves, 2}},
        {"write_0", {write, 3}}, {"sum_0", {sum, 9}},       {"logits_0", {logits, 6}}};
};

CUresult load(const char* image, Module** made, std::string& said) {
    if (std::strncmp(image, "fake", 4) != 0 && std::strncmp(image, ".version 8.0\n", 13) != 0)
        return said = "ptxas: not fake", CUDA_ERROR_INVALID_IMAGE;
    return *made = new Module, CUDA_SUCCESS;
}
void unload(Module* module) { delete module; }
const Kernel* find(Module* module, const char* name) {
    auto found = module->kernels.find(name);
    return found == module->kernels.end() ? nullptr : &found->second;
}
CUresult prepare(const Kernel& kernel, const CUlaunchConfig& config, void** parameters, std::function<void()>& work) {
    if (config.gridDimY != 1 || config.gridDimZ != 1) return CUDA_ERROR_INVALID_VALUE;
    int count = kernel.parameters;
    for (int added = count; added < count + 2; added++)  // the two scratch pointers
        if (*static_cast<void**>(parameters[added]) != nullptr) return CUDA_ERROR_INVALID_VALUE;
    std::vector<void*> values(count);
    for (int place = 0; place < count; place++) std::memcpy(&values[place], parameters[place], 8);
    work = [values, programs = config.gridDimX, body = kernel.body]() mutable {
        for (unsigned x = 0; x < programs; x++) body(values.data(), x);
    };
    return CUDA_SUCCESS;
}
void allocated(CUdeviceptr, size_t) {}
void freed(CUdeviceptr) {}

}  // namespace fake
