// A team of threads that runs one function together, with a barrier that costs a cache-line transfer.
//
// Every thread of the team runs the whole step; work is split by (tid, n) and ordered by barriers. Between steps
// workers spin for a short while, so that the next token of a loop finds them awake, and then sleep.
//
// The threads of a pool do not survive fork(): a child process must not use a pool that its parent opened.
#pragma once

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace llmc {

inline constexpr size_t kLine = 64;  // bytes of a cache line
inline constexpr int kRounds = 10;   // of the barrier: enough for 1024 threads

// In pauses of 15 to 60 ns. A barrier that takes longer waits for a thread that has lost its core: give ours away.
// Workers stay awake between two steps for as long as a program takes to choose a token: one to four milliseconds.
inline constexpr int kSpinsBeforeYield = 1024;
inline constexpr int kSpinsBeforeSleep = 1 << 16;

inline void pause_core() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// A number that one thread writes and others wait for, alone on its cache line.
struct alignas(kLine) Signal {
  std::atomic<uint32_t> value{0};
};

/// One thread's part in a barrier: what it has signalled in each round. A signal only ever grows, so none is reset.
struct Arrivals {
  Signal rounds[kRounds];
};

/// One thread's view of the team that runs a step.
struct alignas(kLine) Team {
  int tid = 0, n = 1;
  std::byte* scratch = nullptr;  // private to the thread, of the pool's scratch_bytes
  Arrivals* arrivals = nullptr;  // [n] of the whole team
  uint32_t generation = 0;       // barriers passed; equal in all threads

  /// Returns once all n threads have called it; what they wrote before is then visible to all.
  ///
  /// A dissemination barrier: in round r thread i signals and then waits for thread i - 2^r, so that after log2(n)
  /// rounds everyone has heard of everyone. Nobody writes a line that another one writes: two threads pay one transfer.
  void barrier() {
    ++generation;
    for (int round = 0, distance = 1; distance < n; ++round, distance *= 2) {
      arrivals[tid].rounds[round].value.store(generation, std::memory_order_release);
      const auto& awaited = arrivals[tid >= distance ? tid - distance : tid - distance + n].rounds[round].value;
      for (int spins = 0; int32_t(awaited.load(std::memory_order_acquire) - generation) < 0;) {
        if (++spins < kSpinsBeforeYield) {
          pause_core();
        } else {
          sched_yield();
        }
      }
    }
  }
};

/// Owns threads - 1 workers; the thread that calls `run` is the team's thread 0.
///
/// Workers take the affinity of the thread that opens the pool, or worker i runs on cpus[i] alone if `cpus` [threads]
/// is given; the calling thread's own affinity is never changed. They block all signals. Not to be used by two threads
/// at a time.
class Pool {
 public:
  using Function = void (*)(Team&, void*);

  Pool(int threads, const int* cpus, size_t scratch_bytes) {
    n_ = threads < 1 ? 1 : threads;
    scratch_bytes_ = (scratch_bytes + kLine - 1) / kLine * kLine;
    members_ = new (std::nothrow) Member[size_t(n_)];
    arrivals_ = new (std::nothrow) Arrivals[size_t(n_)];
    if (n_ >= 1 << kRounds || members_ == nullptr || arrivals_ == nullptr) return;
    for (int i = 0; i < n_; ++i) {
      members_[i].pool = this;
      members_[i].team.tid = i;
      members_[i].team.n = n_;
      members_[i].team.arrivals = arrivals_;
    }
    if (!allocate_scratch(members_[0].team)) return;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started_ < n_ && start(members_[started_], cpus == nullptr ? -1 : cpus[started_])) ++started_;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    // A worker that lacks memory says so before the first step.
    for (int i = 1; i < started_; ++i) members_[i].ready.wait(0);
    ok_ = started_ == n_;
    for (int i = 1; i < started_; ++i) ok_ = ok_ && members_[i].team.scratch != nullptr;
  }

  ~Pool() {
    function_ = nullptr;
    wake();
    for (int i = 1; i < started_; ++i) pthread_join(members_[i].thread, nullptr);
    if (members_ != nullptr) {
      for (int i = 0; i < n_; ++i) std::free(members_[i].team.scratch);
    }
    delete[] members_;
    delete[] arrivals_;
  }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// Whether all threads are running. A pool that is not ok can only be destroyed.
  bool ok() const { return ok_; }
  int threads() const { return n_; }

  /// Calls function(team, argument) on every thread of the team; returns when all calls have.
  void run(Function function, void* argument) {
    if (n_ > 1) {
      function_ = function;
      argument_ = argument;
      wake();
    }
    Team& team = members_[0].team;
    function(team, argument);
    team.barrier();
  }

 private:
  struct Member {
    Team team;
    Pool* pool = nullptr;
    pthread_t thread{};
    std::atomic<int> ready{0};
  };

  bool start(Member& member, int cpu) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return false;
    bool fine = true;
    if (cpu >= 0) {
      cpu_set_t set;
      CPU_ZERO(&set);
      if (cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
      fine = cpu < CPU_SETSIZE && pthread_attr_setaffinity_np(&attributes, sizeof set, &set) == 0;
    }
    fine = fine && pthread_create(&member.thread, &attributes, &Pool::work, &member) == 0;
    pthread_attr_destroy(&attributes);
    return fine;
  }

  /// Each thread touches its own scratch first, so that the memory is near its core.
  bool allocate_scratch(Team& team) const {
    team.scratch = static_cast<std::byte*>(std::aligned_alloc(4096, (scratch_bytes_ + 4095) / 4096 * 4096 + 4096));
    if (team.scratch != nullptr) std::memset(team.scratch, 0, scratch_bytes_);
    return team.scratch != nullptr;
  }

  /// Sequentially consistent, so that a worker on its way to sleep is not missed.
  void wake() {
    epoch_.value.fetch_add(1);
    epoch_.value.notify_all();
  }

  static void* work(void* argument) {
    Member& member = *static_cast<Member*>(argument);
    Pool& pool = *member.pool;
    pool.allocate_scratch(member.team);
    member.ready.store(1);
    member.ready.notify_one();
    for (uint32_t seen = 0;; ++seen) {
      const auto called = [&] { return pool.epoch_.value.load(std::memory_order_acquire) != seen; };
      for (int spins = 0; spins < kSpinsBeforeSleep && !called(); ++spins) pause_core();
      pool.epoch_.value.wait(seen);
      if (pool.function_ == nullptr) return nullptr;
      pool.function_(member.team, pool.argument_);
      member.team.barrier();
    }
  }

  Signal epoch_;  // calls of `run` so far; workers wait for it to change
  Function function_ = nullptr;
  void* argument_ = nullptr;
  Member* members_ = nullptr;
  Arrivals* arrivals_ = nullptr;
  size_t scratch_bytes_ = 0;
  int n_ = 1, started_ = 1;
  bool ok_ = false;
};

}  // namespace llmc
