"""What the process gives back to the system."""

import ctypes
import os
from pathlib import Path

import pytest

from llmc.runtime.memory import give_back_freed

STATM = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_freed_memory_in_the_middle_of_the_heap_is_given_back() -> None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim") or not STATM.exists():
        pytest.skip("the C library gives freed memory back by itself, or cannot")
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    size, count = 4096, 10_000
    blocks = [library.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    full = resident()
    for block in blocks[:-1]:  # the last one keeps the heap from shrinking by itself
        library.free(block)
    kept = resident()
    give_back_freed()
    assert full - resident() > size * count // 2
    assert kept > resident()
    library.free(blocks[-1])
    give_back_freed()
