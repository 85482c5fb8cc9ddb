// Teams of threads under stress, as C functions and as a program for the sanitizers.
#pragma once

#include <csignal>
#include <cstdio>
#include <ctime>

#include "llmc/threads.h"

using namespace llmc;

inline double seconds(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

struct Ring {
  int64_t rounds;
  int64_t cells[64][8];  // a line for each thread
  std::atomic<int64_t> wrong;
};

/// Threads pass numbers to their neighbours: between two barriers each reads what another wrote before the first.
inline void pass_around(Team& team, void* argument) {
  auto& ring = *static_cast<Ring*>(argument);
  for (int64_t round = 0; round < ring.rounds; ++round) {
    ring.cells[team.tid][0] = round * team.n + team.tid;
    team.barrier();
    const int next = (team.tid + 1) % team.n;
    if (ring.cells[next][0] != round * team.n + next) ++ring.wrong;
    team.barrier();
  }
  std::memset(team.scratch, team.tid, 1000);
}

/// How many numbers arrived wrong, or -1 if there is no pool.
EXPORT int64_t stress(int threads, const int* cpus, int64_t runs, int64_t rounds) {
  Pool pool(threads, cpus, 1000);
  if (!pool.ok()) return -1;
  Ring ring{rounds, {}, {0}};
  for (int64_t i = 0; i < runs; ++i) pool.run(pass_around, &ring);
  return ring.wrong;
}

/// CPU seconds that the process takes while a pool has nothing to do for `wall` seconds.
EXPORT double idle_cost(int threads, double wall) {
  Pool pool(threads, nullptr, 64);
  if (!pool.ok()) return -1;
  pool.run([](Team& team, void*) { team.barrier(); }, nullptr);
  const timespec settle{0, 100'000'000}, rest{time_t(wall), long((wall - double(time_t(wall))) * 1e9)};
  nanosleep(&settle, nullptr);
  const double before = seconds(CLOCK_PROCESS_CPUTIME_ID);
  nanosleep(&rest, nullptr);
  const double cost = seconds(CLOCK_PROCESS_CPUTIME_ID) - before;
  Ring ring{3, {}, {0}};
  pool.run(pass_around, &ring);  // and they wake up
  return ring.wrong == 0 ? cost : -2;
}

/// Nanoseconds of a barrier.
EXPORT double barrier_time(int threads, int64_t count) {
  struct Timing {
    int64_t count;
    double took;
  } timing{count, 0};
  Pool pool(threads, nullptr, 64);
  if (!pool.ok()) return -1;
  pool.run(
      [](Team& team, void* argument) {
        auto& to = *static_cast<Timing*>(argument);
        team.barrier();
        const double start = seconds(CLOCK_MONOTONIC);
        for (int64_t i = 0; i < to.count; ++i) team.barrier();
        if (team.tid == 0) to.took = seconds(CLOCK_MONOTONIC) - start;
      },
      &timing);
  return 1e9 * timing.took / double(count);
}

/// Where the workers may run and whether they block SIGINT: for thread i the mask of its first 64 CPUs, then 0 or 1.
EXPORT int surroundings(int threads, const int* cpus, uint64_t* found) {
  Pool pool(threads, cpus, 64);
  if (!pool.ok()) return -1;
  pool.run(
      [](Team& team, void* argument) {
        auto* to = static_cast<uint64_t*>(argument) + 2 * team.tid;
        cpu_set_t set;
        sched_getaffinity(0, sizeof set, &set);
        to[0] = 0;
        for (int i = 0; i < 64; ++i) to[0] |= uint64_t(CPU_ISSET(i, &set) != 0) << i;
        sigset_t blocked;
        pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
        to[1] = uint64_t(sigismember(&blocked, SIGINT));
      },
      found);
  return 0;
}
