// What the fake libcuda offers the libraries that are built into it.

#pragma once

#include <cuda.h>

#include <cstddef>
#include <functional>
#include <string>

namespace fake {

// Whether so many bytes from an address on belong to one allocation.
bool inside(CUdeviceptr pointer, size_t bytes);

// Does work in the order of a stream: now, or, while it is captured, whenever the graph is launched.
CUresult run(CUstream stream, std::function<void()> work);

// Whether the calling thread has a context.
bool current();

// What is wrong with work that was done: whatever is asked for from now on fails for this reason.
void fail(const std::string& why);

}  // namespace fake
