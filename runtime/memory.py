"""Large pieces of memory for weights, caches and intermediate values: zeroed, on huge pages where the system has them.

A step reads every weight once. On pages of 4 KiB the translation of their addresses alone costs several percent of the
bandwidth; on pages of 2 MiB it costs nothing.
"""

import contextlib
import ctypes
import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmc.errors import OutOfMemory

HUGE_PAGE = 2 << 20
ALIGNMENT = 64
"""Every array that `Region.carve` hands out begins at a multiple of this: a cache line, a vector register."""
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)

Bytes = npt.NDArray[np.uint8]


class Region:
    """Zeroed memory that takes up room only where it is touched."""

    def __init__(self, size: int) -> None:
        """Set aside `size` bytes that begin at a huge page. Raises OutOfMemory."""
        huge = size >= HUGE_PAGE
        try:
            content = mmap.mmap(
                -1, max(size, 1) + HUGE_PAGE * huge, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
            )
        except (OSError, ValueError, OverflowError) as error:
            raise OutOfMemory(
                f"{size} bytes of memory: {error}; close other programs, or serve less at a time"
            ) from None
        if huge and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages
                content.madvise(mmap.MADV_HUGEPAGE)
        everything = np.frombuffer(content, np.uint8)
        begin = -address(everything) % HUGE_PAGE if huge else 0
        self.bytes: Bytes = everything[begin : begin + size]
        """[size] all of it."""
        self._used = 0

    def carve(self, size: int) -> Bytes:
        """The next `size` bytes, behind those that were handed out before."""
        begin = self._used
        self._used = begin + padded(size)
        assert begin + size <= self.bytes.size, "more was carved than was set aside"
        return self.bytes[begin : begin + size]


def padded(size: int) -> int:
    """`size` rounded up so that what follows is aligned."""
    return size + -size % ALIGNMENT


def address(array: npt.NDArray[np.generic]) -> int:
    """Where the first byte of an array lies."""
    return int(array.__array_interface__["data"][0])


def give_back_freed() -> None:
    """Give memory that C code has freed back to the system, where its library keeps it (glibc does). Takes some ms."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def available_bytes() -> int | None:
    """Memory that can be taken without forcing others out, as the system and a container's limit see it.

    None where the system does not say.
    """
    found = [_available_of_system(), _available_of_container()]
    return min((value for value in found if value is not None), default=None)


def _available_of_system() -> int | None:
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _available_of_container() -> int | None:
    """What cgroup v2 leaves of its limit; its file cache gives way, so it counts as free."""
    limit, used = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    facts = dict(line.split() for line in _text("/sys/fs/cgroup/memory.stat").splitlines())
    return int(limit) - int(used) + int(facts.get("file", 0))


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
