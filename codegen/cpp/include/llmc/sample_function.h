// The sampler as a C function of a program; runtime/native_sample.py calls it.
#pragma once

#include "llmc/engine.h"
#include "llmc/sample.h"

/// Bytes of memory that `llmc_sample` works in.
LLMC_API int64_t llmc_sample_scratch(int64_t vocabulary) { return int64_t(llmc::sample_scratch_bytes(vocabulary)); }

/// The next token given its n logits, or -1 if they are not numbers; see `llmc::sample`.
LLMC_API int64_t llmc_sample(const float* logits, int64_t n, const llmc::Sampling* how, const uint8_t* seen, double random,
                             void* scratch) {
  return llmc::sample(logits, n, *how, seen, random, scratch);
}
