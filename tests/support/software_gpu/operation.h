// An instruction that works thread by thread, as a loop over the threads of a block.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace software_gpu {

// out[k][i] = f(in[0][i], in[1][i], ...) for every i < n. Arrays are 64-byte aligned, n is a multiple of 32, and no
// output is one of the inputs. Every input must give something: threads that are masked out hold whatever they hold.
using Elementwise = void (*)(size_t n, void* const* out, const void* const* in);

struct Operation {
    Elementwise run;
    uint8_t outs, ins;
    uint8_t out_bytes[2];  // of one element: 1 a predicate (0 or 1), else 2, 4 or 8
    uint8_t in_bytes[4];
};

}  // namespace software_gpu
