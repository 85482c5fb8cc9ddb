"""The team of threads: its barrier, its sleep, its opening and closing."""

import ctypes
import functools
import os
from pathlib import Path

import pytest
from support.native import HARNESSES, compile_native, run_native


@functools.cache
def harness() -> ctypes.CDLL:
    library = compile_native('#include "threads_harness.h"\n', isa="portable")
    library.stress.restype = ctypes.c_int64
    library.idle_cost.restype = library.barrier_time.restype = ctypes.c_double
    return library


def stress(threads: int, runs: int, rounds: int, cpus: list[int] | None = None) -> int:
    chosen = None if cpus is None else (ctypes.c_int * threads)(*cpus)
    wrong: int = harness().stress(threads, chosen, ctypes.c_int64(runs), ctypes.c_int64(rounds))
    return wrong


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_barrier_orders_memory(threads: int) -> None:
    spare = len(os.sched_getaffinity(0)) >= threads
    assert stress(threads, runs=20, rounds=500 if spare else 20) == 0


def test_more_threads_than_cores() -> None:
    assert stress(17, runs=3, rounds=5) == 0


def test_many_pools() -> None:
    for _ in range(100):
        assert stress(3, runs=2, rounds=1) == 0
    assert len(list(Path("/proc/self/task").iterdir())) < 100


def test_unused_pool_closes() -> None:
    assert stress(4, runs=0, rounds=0) == 0


def test_idle_threads_sleep() -> None:
    assert 0 <= harness().idle_cost(4, ctypes.c_double(0.3)) < 0.05


def test_threads_are_pinned_where_asked_and_block_signals() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    found = (ctypes.c_uint64 * 6)()
    assert harness().surroundings(3, None, found) == 0
    mask = sum(1 << cpu for cpu in allowed if cpu < 64)
    assert list(found) == [mask, 0, mask, 1, mask, 1]
    cpus = [allowed[0], allowed[-1], allowed[0]]
    assert harness().surroundings(3, (ctypes.c_int * 3)(*cpus), found) == 0
    assert list(found)[::2] == [mask, 1 << cpus[1], 1 << cpus[2]]
    assert os.sched_getaffinity(0) == set(allowed)


def test_a_pool_without_its_cores_is_not_ok() -> None:
    assert stress(2, 1, 1, cpus=[0, 100_000]) == -1
    assert stress(3, 1, 1, cpus=[0, 0, 100_000]) == -1


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_under_sanitizers(sanitizer: str) -> None:
    source = HARNESSES / "threads_sanitized.cpp"
    assert run_native(source, isa="portable", sanitizer="thread" if sanitizer == "thread" else "address") == "ok\n"
