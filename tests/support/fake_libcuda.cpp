// A libcuda without a GPU, compiled against the real cuda.h: what the runtime calls has the names and types that are
// declared there. Memory is the host's, a stream runs at once unless it is captured; what code is and how it runs is
// for another file to say (fake_kernels.h). Whatever the driver would refuse, and much that it would not notice, is an
// error here.

#pragma GCC visibility push(default)
#include <cuda.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "fake_driver.h"
#include "fake_kernels.h"

#ifndef FAKE_VERSION
#define FAKE_VERSION 12040
#endif
#ifndef FAKE_DEVICES
#define FAKE_DEVICES 1
#endif

namespace {

using fake::device;
using Work = std::function<void()>;

struct Function {
    const fake::Kernel* kernel;
    unsigned shared = 48 << 10;
};
struct Stream {
    bool capturing = false, invalid = false;
    std::vector<Work> recorded;
};
struct Graph {
    std::vector<Work> work;
};
struct State {
    std::map<char*, size_t> memory;
    size_t used = 0;
    int streams = 0, events = 0, modules = 0, graphs = 0, pinned = 0, contexts = 0;
    int launches = 0, programmatic = 0, replays = 0, recordings = 0;
    int allocations_left = -1, launches_left = -1;  // until the one that fails; negative: none does
    std::string error;  // of a kernel: nothing more can be done in the context
} state;
thread_local bool current = false;
char context;

// What any function says that needs a context.
CUresult usable() {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    return state.error.empty() ? CUDA_SUCCESS : CUDA_ERROR_LAUNCH_FAILED;
}

}  // namespace

namespace fake {

bool current() { return ::current; }

void fail(const std::string& why) {
    if (state.error.empty()) state.error = why;
}

// What must not be done while a stream is captured ends that.
CUresult invalidate(CUstream stream) {
    reinterpret_cast<Stream*>(stream)->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

bool inside(CUdeviceptr pointer, size_t bytes) {
    auto* begin = reinterpret_cast<char*>(pointer);
    for (auto& [start, size] : state.memory)
        if (begin >= start && begin + bytes <= start + size) return true;
    return false;
}

CUresult run(CUstream handle, Work work) {
    auto* stream = reinterpret_cast<Stream*>(handle);
    if (stream == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    if (CUresult failed = usable()) return failed;
    if (stream->capturing)
        stream->recorded.push_back(std::move(work));
    else
        work();
    return CUDA_SUCCESS;
}

}  // namespace fake

using fake::inside;
using fake::run;

extern "C" {

CUresult cuInit(unsigned flags) {
    return flags ? CUDA_ERROR_INVALID_VALUE : FAKE_DEVICES ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
CUresult cuDriverGetVersion(int* version) { return *version = FAKE_VERSION, CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult error, const char** text) {
    switch (error) {
        case CUDA_ERROR_INVALID_IMAGE: return *text = "CUDA_ERROR_INVALID_IMAGE", CUDA_SUCCESS;
        case CUDA_ERROR_INVALID_PTX: return *text = "CUDA_ERROR_INVALID_PTX", CUDA_SUCCESS;
        case CUDA_ERROR_NO_BINARY_FOR_GPU: return *text = "CUDA_ERROR_NO_BINARY_FOR_GPU", CUDA_SUCCESS;
        case CUDA_ERROR_NOT_FOUND: return *text = "CUDA_ERROR_NOT_FOUND", CUDA_SUCCESS;
        case CUDA_ERROR_LAUNCH_FAILED: return *text = "CUDA_ERROR_LAUNCH_FAILED", CUDA_SUCCESS;
        case CUDA_ERROR_INVALID_CONTEXT: return *text = "CUDA_ERROR_INVALID_CONTEXT", CUDA_SUCCESS;
        case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED:
            return *text = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", CUDA_SUCCESS;
        case CUDA_ERROR_STREAM_CAPTURE_INVALIDATED:
            return *text = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", CUDA_SUCCESS;
        default: return *text = "CUDA_ERROR_INVALID_VALUE", CUDA_SUCCESS;
    }
}
CUresult cuGetErrorString(CUresult error, const char** text) {
    *text = error == CUDA_ERROR_LAUNCH_FAILED ? state.error.c_str() : "said the driver";
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) { return *count = FAKE_DEVICES, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* found, int ordinal) { return *found = 40 + ordinal, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* name, int length, CUdevice) {
    return std::strncpy(name, device.name, length), CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice ordinal) {
    if (ordinal < 40) return CUDA_ERROR_INVALID_DEVICE;
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = device.major; return CUDA_SUCCESS;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = device.minor; return CUDA_SUCCESS;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = device.multiprocessors; return CUDA_SUCCESS;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = device.shared_bytes; return CUDA_SUCCESS;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
}
CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) { return *bytes = device.bytes, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* made, CUdevice) {
    state.contexts++;
    return *made = reinterpret_cast<CUcontext>(&context), CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) {
    if (--state.contexts > 0 || state.error.empty()) return CUDA_SUCCESS;
    for (auto& [begin, bytes] : state.memory) fake::freed(reinterpret_cast<CUdeviceptr>(begin)), std::free(begin);
    return state = {}, CUDA_SUCCESS;  // all that could not be given back goes with the context
}
CUresult cuCtxSetCurrent(CUcontext given) {
    current = given == reinterpret_cast<CUcontext>(&context);
    return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuMemGetInfo(size_t* free, size_t* total) {
    if (CUresult failed = usable()) return failed;
    return *total = device.bytes, *free = device.bytes - state.used, CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr* pointer, size_t bytes) {
    if (CUresult failed = usable()) return failed;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (state.allocations_left >= 0 && state.allocations_left-- == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    if (bytes > device.bytes - state.used) return CUDA_ERROR_OUT_OF_MEMORY;
    auto* made = static_cast<char*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
    std::memset(made, 0xff, bytes);
    state.memory[made] = bytes;
    fake::allocated(reinterpret_cast<CUdeviceptr>(made), bytes);
    state.used += bytes;
    return *pointer = reinterpret_cast<CUdeviceptr>(made), CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr pointer) {
    if (CUresult failed = usable()) return failed;
    auto found = state.memory.find(reinterpret_cast<char*>(pointer));
    if (found == state.memory.end()) return CUDA_ERROR_INVALID_VALUE;
    state.used -= found->second;
    fake::freed(pointer);
    std::memset(found->first, 0xff, found->second);
    std::free(found->first);
    return state.memory.erase(found), CUDA_SUCCESS;
}
CUresult cuMemAllocHost(void** pointer, size_t bytes) {
    if (CUresult failed = usable()) return failed;
    if (state.allocations_left >= 0 && state.allocations_left-- == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    state.pinned++;
    return *pointer = std::malloc(bytes), CUDA_SUCCESS;
}
CUresult cuMemFreeHost(void* pointer) {
    if (CUresult failed = usable()) return failed;
    return state.pinned--, std::free(pointer), CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr target, const void* source, size_t bytes, CUstream stream) {
    if (!inside(target, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return run(stream, [=] { std::memcpy(reinterpret_cast<void*>(target), source, bytes); });
}
CUresult cuMemcpyDtoHAsync(void* target, CUdeviceptr source, size_t bytes, CUstream stream) {
    if (!inside(source, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return run(stream, [=] { std::memcpy(target, reinterpret_cast<void*>(source), bytes); });
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream) {
    if (!inside(source, bytes) || !inside(target, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return run(stream, [=] { std::memcpy(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), bytes); });
}
CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t bytes, CUstream stream) {
    if (!inside(target, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return run(stream, [=] { std::memset(reinterpret_cast<void*>(target), value, bytes); });
}
CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
    if (CUresult failed = usable()) return failed;
    if (flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    state.streams++;
    return *stream = reinterpret_cast<CUstream>(new Stream), CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream stream) {
    if (CUresult failed = usable()) return failed;
    state.streams--;
    return delete reinterpret_cast<Stream*>(stream), CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
    if (reinterpret_cast<Stream*>(stream)->capturing) return fake::invalidate(stream);
    return usable();
}
CUresult cuEventCreate(CUevent* event, unsigned flags) {
    if (CUresult failed = usable()) return failed;
    if (flags != CU_EVENT_DEFAULT) return CUDA_ERROR_INVALID_VALUE;
    state.events++;
    return *event = reinterpret_cast<CUevent>(new char), CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent event) {
    if (CUresult failed = usable()) return failed;
    return state.events--, delete reinterpret_cast<char*>(event), CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent, CUstream stream) {
    return reinterpret_cast<Stream*>(stream)->capturing ? fake::invalidate(stream) : usable();
}
CUresult cuEventSynchronize(CUevent) { return usable(); }
#undef cuEventElapsedTime
CUresult cuEventElapsedTime(float* milliseconds, CUevent, CUevent) { return *milliseconds = 1.5f, CUDA_SUCCESS; }

CUresult cuModuleLoadDataEx(
    CUmodule* module, const void* image, unsigned count, CUjit_option* options, void** values) {
    if (CUresult failed = usable()) return failed;
    if (count != 2 || options[0] != CU_JIT_ERROR_LOG_BUFFER || options[1] != CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
        return CUDA_ERROR_INVALID_VALUE;
    std::string said;
    fake::Module* made = nullptr;
    if (CUresult failed = fake::load(static_cast<const char*>(image), &made, said)) {
        std::strncpy(static_cast<char*>(values[0]), said.c_str(), reinterpret_cast<size_t>(values[1]) - 1);
        return failed;
    }
    state.modules++;
    return *module = reinterpret_cast<CUmodule>(made), CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) {
    if (CUresult failed = usable()) return failed;
    return state.modules--, fake::unload(reinterpret_cast<fake::Module*>(module)), CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    auto* found = fake::find(reinterpret_cast<fake::Module*>(module), name);
    if (found == nullptr) return CUDA_ERROR_NOT_FOUND;
    return *function = reinterpret_cast<CUfunction>(new Function{found}), CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > device.shared_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    reinterpret_cast<Function*>(function)->shared = value;
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction handle, void** parameters, void** extra) {
    auto* function = reinterpret_cast<Function*>(handle);
    if (extra != nullptr || config->sharedMemBytes > function->shared) return CUDA_ERROR_INVALID_VALUE;
    if (config->blockDimX % 32 || config->blockDimY != 1 || config->blockDimZ != 1) return CUDA_ERROR_INVALID_VALUE;
    if (!config->gridDimX || !config->gridDimY || !config->gridDimZ) return CUDA_ERROR_INVALID_VALUE;
    if (config->numAttrs > 1) return CUDA_ERROR_INVALID_VALUE;
    if (config->numAttrs == 1) {
        auto& attribute = config->attrs[0];
        if (attribute.id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) return CUDA_ERROR_INVALID_VALUE;
        if (attribute.value.programmaticStreamSerializationAllowed != 1) return CUDA_ERROR_INVALID_VALUE;
        state.programmatic++;
    }
    Work work;
    if (CUresult failed = fake::prepare(*function->kernel, *config, parameters, work)) return failed;
    return run(config->hStream, [work = std::move(work)] {
        state.launches++;
        if (state.launches_left >= 0 && state.launches_left-- == 0) return fake::fail("as a test wants it");
        work();
    });
}
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    if (CUresult failed = usable()) return failed;
    if (mode != CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    *reinterpret_cast<Stream*>(stream) = {true, false, {}};
    return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
    auto* stream = reinterpret_cast<Stream*>(handle);
    bool invalid = stream->invalid;
    *graph = invalid ? nullptr : (state.recordings++, reinterpret_cast<CUgraph>(new Graph{std::move(stream->recorded)}));
    *stream = {};
    return invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
}
CUresult cuGraphInstantiate(CUgraphExec* made, CUgraph graph, unsigned long long flags) {
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (state.allocations_left >= 0 && state.allocations_left-- == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    state.graphs++;
    *made = reinterpret_cast<CUgraphExec>(new Graph(*reinterpret_cast<Graph*>(graph)));
    return CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
    if (reinterpret_cast<Stream*>(stream)->capturing) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult failed = usable()) return failed;
    state.replays++;
    for (auto& work : reinterpret_cast<Graph*>(graph)->work)
        if (state.error.empty()) work();
    return CUDA_SUCCESS;
}
CUresult cuGraphExecDestroy(CUgraphExec graph) {
    if (CUresult failed = usable()) return failed;
    state.graphs--;
    return delete reinterpret_cast<Graph*>(graph), CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph graph) {
    return state.recordings--, delete reinterpret_cast<Graph*>(graph), CUDA_SUCCESS;
}

// What tests ask of it.

void fake_forget_failure() { state.error.clear(); }  // a failed test may hold its context still
void fake_fail(int allocations, int launches) {
    state.allocations_left = allocations, state.launches_left = launches;
}
void fake_counts(int64_t* counts) {
    int64_t found[] = {
        int64_t(state.used), state.streams, state.events, state.modules, state.graphs, state.pinned, state.contexts,
        state.launches, state.programmatic, state.replays, state.recordings};
    std::memcpy(counts, found, sizeof found);
}
void fake_layout(size_t* numbers) {
    size_t found[] = {
        sizeof(CUlaunchConfig), offsetof(CUlaunchConfig, gridDimX), offsetof(CUlaunchConfig, blockDimX),
        offsetof(CUlaunchConfig, sharedMemBytes), offsetof(CUlaunchConfig, hStream), offsetof(CUlaunchConfig, attrs),
        offsetof(CUlaunchConfig, numAttrs), sizeof(CUlaunchAttribute), offsetof(CUlaunchAttribute, value),
        sizeof(CUdeviceptr), sizeof(CUresult), sizeof(CUdevice), sizeof(CUstream)};
    std::memcpy(numbers, found, sizeof found);
}
}
