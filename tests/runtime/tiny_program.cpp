// A program by the C ABI, small enough to check by hand: no kernels, but all of what the runtime relies on.
//
// Weights: table [V, V] and scale [V], float32. The "cache" keeps the token of each slot, so logits of a token depend on
// what the block tables say: row[v] = table[token][v] + scale[v] * (sum of the tokens of the sequence so far).
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <pthread.h>

struct Step {
  int64_t T, B, M, R;
  const int64_t *tokens, *positions, *slots, *starts, *lengths, *blocks, *rows;
  int block_size;
};

namespace {

constexpr int64_t V = 7;

struct Machine {
  const void* const* weights;
  void* const* caches;
  int64_t block_size, capacity;
  std::byte* arena;
  int threads, pinned;
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

#ifndef ABI
#define ABI 1
#endif

API int llmc_abi(void) { return ABI; }

API const char* llmc_describe(void) {
  return "{\"abi\": 1, \"vocabulary\": 7, \"weights\": [\"table\", \"scale\"], \"weight_bytes\": [196, 28],"
         " \"caches\": [[8, 4]], \"arena_bytes_per_token\": 64, \"arena_bytes\": 128, \"crossovers\": [\"7x7:f32\"],"
         " \"threads_scratch\": 0}";
}

API void* llmc_open(const void* const* weights, int threads, const int* cpus) {
  if (threads > 100) return nullptr;
  return new (std::nothrow) Machine{weights, nullptr, 0, 0, nullptr, threads, cpus ? cpus[0] : -1};
}

API void llmc_close(void* machine) { delete static_cast<Machine*>(machine); }

API int llmc_allocate(void* machine, void* const* caches, int64_t block_size, void* arena, int64_t tokens) {
  auto& m = *static_cast<Machine*>(machine);
  m.caches = caches;
  m.block_size = block_size;
  m.arena = static_cast<std::byte*>(arena);
  m.capacity = tokens;
  return 0;
}

API int llmc_step(void* machine, const Step* step, float* logits) {
  auto& m = *static_cast<Machine*>(machine);
  if (step->T > m.capacity) return 1;
  const float* table = static_cast<const float*>(m.weights[0]);
  const float* scale = static_cast<const float*>(m.weights[1]);
  if (reinterpret_cast<uintptr_t>(table) % 64 || reinterpret_cast<uintptr_t>(scale) % 64) return 2;
  std::memset(m.arena, 1, size_t(64 * step->T + 128));  // all of the arena is ours
  auto* keys = static_cast<int64_t*>(m.caches[0]);
  auto* values = static_cast<float*>(m.caches[1]);
  for (int64_t t = 0; t < step->T; ++t) {
    keys[step->slots[t]] = step->tokens[t];
    values[step->slots[t]] = float(step->tokens[t]);
  }
  for (int64_t r = 0; r < step->R; ++r) {
    const int64_t t = step->rows[r];
    int64_t b = 0;
    while (step->starts[b + 1] <= t) ++b;
    float sum = 0;
    for (int64_t p = 0; p <= step->positions[t]; ++p) {
      const int64_t slot = step->blocks[b * step->M + p / m.block_size] * m.block_size + p % m.block_size;
      sum += values[slot];
      if (float(keys[slot]) != values[slot]) return 3;
    }
    for (int64_t v = 0; v < V; ++v) logits[r * V + v] = table[step->tokens[t] * V + v] + scale[v] * sum;
  }
  return 0;
}

API int llmc_tune(void* machine, int place, int flat, int gemm) { return place != 0; }
