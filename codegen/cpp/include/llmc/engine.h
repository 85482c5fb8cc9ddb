// What a generated program runs on: its memory for one step, and the C functions by which the runtime drives it.
//
// The generated file defines `step_on(Team&, const Run&)` and a `Program` description, then LLMC_PROGRAM exports them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <initializer_list>
#include <new>

#include "llmc/cache.h"
#include "llmc/linear.h"
#include "llmc/program.h"
#include "llmc/threads.h"

namespace llmc {

/// Sizes of one layer's cache.
struct CacheShape {
  int heads, key_size, value_size;
};

/// Computes on the thread that called the program what has no native form: call `number` of those that its description
/// names, on the values (inputs, then outputs) at these places.
using Host = void (*)(int number, const void* const* values);

/// All that a step works on. After a fixed part, buffers of the arena begin at offset * tokens, so that one plan serves any
/// step size and a small step stays in the caches.
struct Run {
  Step step;
  const void* const* weights;
  void* const* caches;
  const CacheShape* shapes;
  const Crossover* crossovers;
  std::byte* arena;
  int64_t capacity;  // tokens that the arena has room for
  int64_t fixed;          // bytes of the arena that do not grow with the step
  int64_t shared_offset;  // where the buffers end and what linears share begins
  float* logits;
  int64_t* times;  // when each region ended, in nanoseconds; null unless they are wanted
  Host host;       // null in a program that does not need it

  template <class Type>
  Type* buffer(int64_t offset) const {
    return reinterpret_cast<Type*>(arena + fixed + offset * step.T);
  }
  template <class Type>
  const Type* weight(int index) const {
    return static_cast<const Type*>(weights[index]);
  }
  std::byte* shared() const { return arena + fixed + shared_offset * step.T; }
  std::byte* shared_by_attention() const { return arena; }
  template <class Element>
  Cache<Element> cache(int layer) const {
    using Type = typename Stored<Element>::type;
    const CacheShape& shape = shapes[layer];
    return {static_cast<Type*>(caches[2 * layer]), static_cast<Type*>(caches[2 * layer + 1]), shape.heads, shape.key_size,
            shape.value_size, step.block_size};
  }
};

/// The part of `count` items that one thread of the team takes.
struct Range {
  int64_t begin, end;
};
inline Range share(const Team& team, int64_t count) {
  return {count * team.tid / team.n, count * (team.tid + 1) / team.n};
}

inline int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

/// A region that the host computes. Thread 0 is the one that called; the others wait where the region ends.
inline void on_host(Team& team, const Run& run, int number, std::initializer_list<const void*> values) {
  if (team.tid == 0) run.host(number, values.begin());
}

/// Ends a region: all threads have done their part of it.
inline void end_region(Team& team, const Run& run, int region) {
  team.barrier();
  if (run.times != nullptr && team.tid == 0) run.times[region + 1] = nanoseconds();
}

/// A program in memory: its team of threads and what the runtime gave it.
struct Machine {
  Pool pool;
  Run run;
  Crossover* crossovers;

  Machine(int threads, const int* cpus, size_t scratch) : pool(threads, cpus, scratch), run{}, crossovers(nullptr) {}
  ~Machine() { delete[] crossovers; }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
};

using StepFunction = void (*)(Team&, const Run&);

/// What a generated file says of its program.
struct Program {
  StepFunction step;
  size_t fixed, shared, scratch;
  int64_t arena;
  const CacheShape* shapes;
  int crossovers;
  const char* description;
};

inline Machine* open_machine(const Program& program, const void* const* weights, int threads, const int* cpus) {
  auto* machine = new (std::nothrow) Machine(threads, cpus, program.scratch);
  if (machine == nullptr || !machine->pool.ok()) {
    delete machine;
    return nullptr;
  }
  machine->crossovers = new (std::nothrow) Crossover[size_t(program.crossovers)];
  if (machine->crossovers == nullptr) {
    delete machine;
    return nullptr;
  }
  machine->run.weights = weights;
  machine->run.shapes = program.shapes;
  machine->run.crossovers = machine->crossovers;
  machine->run.fixed = int64_t(program.fixed);
  machine->run.shared_offset = program.arena;
  return machine;
}

/// Runs one step. `step` and `logits` must stay as they are until it returns; `times` has an entry for the beginning and
/// one for the end of each region, or is null.
inline int run_step(const Program& program, Machine& machine, const Step& step, float* logits, int64_t* times) {
  struct Job {
    StepFunction step;
    const Run* run;
  };
  if (step.T > machine.run.capacity) return 1;
  Run run = machine.run;
  run.step = step;
  run.step.block_size = machine.run.step.block_size;
  run.logits = logits;
  run.times = times;
  if (times != nullptr) times[0] = nanoseconds();
  Job job{program.step, &run};
  machine.pool.run(
      [](Team& team, void* argument) {
        const Job& todo = *static_cast<const Job*>(argument);
        todo.step(team, *todo.run);
      },
      &job);
  return 0;
}

/// The description of a program as JSON, with the sizes that only the compiler knows.
inline const char* describe_program(const Program& program) {
  static char text[1 << 20];
  const int used = std::snprintf(text, sizeof text, "%s\"arena_bytes_per_token\": %lld, \"arena_bytes\": %lld, \"threads_scratch\": %lld}",
                                 program.description, (long long)(program.arena + int64_t(program.shared)),
                                 (long long)program.fixed,
                                 (long long)program.scratch);
  return used > 0 && size_t(used) < sizeof text ? text : nullptr;
}

}  // namespace llmc

#define LLMC_API extern "C" __attribute__((visibility("default")))

/// The C functions of a program; runtime/cpu_program.py calls them.
#define LLMC_PROGRAM(STEP, FIXED, SHARED, SCRATCH, ARENA, SHAPES, CROSSOVERS, DESCRIPTION)                                    \
  static const llmc::Program kProgram{STEP, FIXED, SHARED, SCRATCH, ARENA, SHAPES, CROSSOVERS, DESCRIPTION};                 \
  LLMC_API int llmc_abi(void) { return 1; }                                                                           \
  LLMC_API const char* llmc_describe(void) { return llmc::describe_program(kProgram); }                               \
  LLMC_API void* llmc_open(const void* const* weights, int threads, const int* cpus) {                                \
    return llmc::open_machine(kProgram, weights, threads, cpus);                                                      \
  }                                                                                                                   \
  LLMC_API void llmc_close(void* machine) { delete static_cast<llmc::Machine*>(machine); }                            \
  LLMC_API int llmc_allocate(void* machine, void* const* caches, int64_t block_size, void* arena, int64_t tokens) {   \
    auto& run = static_cast<llmc::Machine*>(machine)->run;                                                            \
    run.caches = caches;                                                                                              \
    run.step.block_size = int(block_size);                                                                            \
    run.arena = static_cast<std::byte*>(arena);                                                                       \
    run.capacity = tokens;                                                                                            \
    return 0;                                                                                                         \
  }                                                                                                                   \
  LLMC_API int llmc_step(void* machine, const llmc::Step* step, float* logits) {                                      \
    return llmc::run_step(kProgram, *static_cast<llmc::Machine*>(machine), *step, logits, nullptr);                   \
  }                                                                                                                   \
  LLMC_API int llmc_measure(void* machine, const llmc::Step* step, float* logits, int64_t* times) {                   \
    return llmc::run_step(kProgram, *static_cast<llmc::Machine*>(machine), *step, logits, times);                     \
  }                                                                                                                   \
  LLMC_API void llmc_set_host(void* machine, llmc::Host host) { static_cast<llmc::Machine*>(machine)->run.host = host; } \
  LLMC_API int llmc_tune(void* machine, int place, int flat, int gemm) {                                              \
    if (place < 0 || place >= kProgram.crossovers) return 1;                                                          \
    static_cast<llmc::Machine*>(machine)->crossovers[place] = {flat, gemm};                                           \
    return 0;                                                                                                         \
  }
