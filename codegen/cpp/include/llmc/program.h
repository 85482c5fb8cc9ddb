// What one call of a generated program works on.
#pragma once

#include <cstdint>

namespace llmc {

/// The inputs of a step: T tokens of B sequences, packed one sequence after another. The memory is the caller's.
struct Step {
  int64_t T, B, M, R;          // tokens, sequences, width of the block table, rows whose logits are wanted
  const int64_t* tokens;       // [T] token ids
  const int64_t* positions;    // [T] position of each token in its sequence
  const int64_t* slots;        // [T] where its key and value go: block * block_size + offset
  const int64_t* starts;       // [B + 1] first token of each sequence, then T
  const int64_t* lengths;      // [B] keys of each sequence, this step's among them
  const int64_t* blocks;       // [B, M] cache blocks of each sequence
  const int64_t* rows;         // [R] tokens whose logits are wanted
  int block_size;
};

}  // namespace llmc
