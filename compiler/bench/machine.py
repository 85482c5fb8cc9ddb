"""The limits of this machine, measured by two small C++ programs: how fast it streams memory, how fast it computes."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmc.codegen.cpp.toolchain import compile_library, find_compiler
from llmc.options import cache_directory
from llmc.runtime.cpu_features import levels

_BUFFER_MIB = 256
_BANDWIDTH_SECONDS, _PEAK_SECONDS = 0.15, 0.1


@dataclass(frozen=True)
class Bandwidth:
    """Streaming reads of all threads, in bytes per second: the best of several passes."""

    small_pages: float
    """In pages of 4 KiB, as a mapped file has them."""
    huge_pages: float
    """In huge pages, where the system grants them."""

    @property
    def best(self) -> float:
        """The greater of the two, the limit that results are held against."""
        return max(self.small_pages, self.huge_pages)


@dataclass(frozen=True)
class Peaks:
    """Operations per second of all threads; a multiplication and an addition are two. None: not there."""

    float32: float
    bfloat16: float | None
    int8: float | None

    def of(self, arithmetic: str) -> float:
        """The peak of "float32", "bfloat16" or "int8"; where a kind lacks instructions, that of float32."""
        peak: float | None = getattr(self, arithmetic)
        return self.float32 if peak is None else peak


class Machine:
    """The probes, compiled once and kept in llmc's cache directory."""

    def __init__(self, threads: int) -> None:
        """Raises MissingTool without a C++ compiler."""
        self.threads = threads
        self._bandwidth = _compiled("bandwidth", ctypes.c_int, ctypes.c_int, ctypes.c_double, ctypes.c_int)
        self._arithmetic = _compiled("arithmetic", ctypes.c_int, ctypes.c_double, ctypes.c_int)

    def bandwidth(self) -> Bandwidth:
        """Measure now; takes half a second. It changes within minutes on shared hosts."""
        small, huge = (self._bandwidth(self.threads, _BUFFER_MIB, _BANDWIDTH_SECONDS, pages) for pages in (0, 1))
        return Bandwidth(small, huge)

    def peaks(self) -> Peaks:
        """Measure now."""
        float32, bfloat16, int8 = (self._arithmetic(self.threads, _PEAK_SECONDS, kind) for kind in range(3))
        return Peaks(float32, bfloat16 or None, int8 or None)


def _compiled(name: str, *arguments: type) -> Callable[..., float]:
    """The function of `<name>.cpp`, for the best instructions that this machine has."""
    source = (Path(__file__).parent / f"{name}.cpp").read_text()
    compiler = find_compiler()
    isa = next(level for level in levels() if level in compiler.levels)
    library = compile_library(source, isa, cache=cache_directory(), compiler=compiler)
    function = getattr(ctypes.CDLL(str(library.path)), name)
    function.restype, function.argtypes = ctypes.c_double, list(arguments)
    found: Callable[..., float] = function
    return found
