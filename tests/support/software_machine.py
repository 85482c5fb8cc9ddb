"""PTX on arrays: kernels run by this CPU, one instruction after another, and whatever they do wrong is an error."""

import ctypes
import functools
from collections.abc import Sequence

import numpy as np

from support.native import compile_native
from support.software_cuda import FLAGS, FOLDER, isa

_PARTS = (
    "arithmetic", "ptx_tokens", "ptx_text", "decode", "decode_others", "load", "definitions", "shared", "block",
    "control", "threads", "transfers", "lanes", "matrices", "machine",
    "numbers", "floats", "small_floats", "comparisons", "conversions", "bits", "tensor", "wgmma",
)  # fmt: skip
SOURCES = tuple(FOLDER / f"{part}.cpp" for part in _PARTS)
"""What the machine is made of."""
Value = np.ndarray | int | float | np.generic
_SCALARS = {int: np.int32, float: np.float32}


class PtxRefused(Exception):
    """A module does not load: what is wrong, and where."""


class KernelFailed(Exception):
    """A kernel did what it must not: what, in which line, block and thread."""


class _Work(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_uint),
        ("seed", ctypes.c_uint),
        ("parameters", ctypes.POINTER(ctypes.c_void_p)),
        ("ranges", ctypes.POINTER(ctypes.c_uint64)),
        ("range_count", ctypes.c_uint64),
        ("most_instructions", ctypes.c_uint64),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    built = compile_native([*SOURCES, FOLDER / "exports.cpp"], isa=isa(), flags=FLAGS)
    built.module_load.restype = ctypes.c_void_p
    built.module_load.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    built.module_free.argtypes = [ctypes.c_void_p]
    built.module_launch.restype = ctypes.c_bool
    built.module_launch.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Work), ctypes.c_char_p, ctypes.c_size_t]
    return built


class PtxModule:
    """The functions of a text of PTX. Raises PtxRefused."""

    def __init__(self, ptx: str) -> None:
        error = ctypes.create_string_buffer(1000)
        self._handle = _library().module_load(ptx.encode(), error, len(error))
        if not self._handle:
            raise PtxRefused(error.value.decode())

    def __del__(self) -> None:
        if self._handle:
            _library().module_free(self._handle)

    def launch(
        self,
        function: str,
        grid: Sequence[int],
        threads: int | Sequence[int],
        values: Sequence[Value],
        *,
        shared: int = 0,
        seed: int = 0,
        most_instructions: int = 0,
    ) -> None:
        """Run `function` on a grid of blocks, in an order that depends on `seed`.

        Arrays are handed over as pointers, and their memory is all that it may touch; a Python integer is 32 bits.
        Raises KernelFailed.
        """
        block = [threads] if isinstance(threads, int) else list(threads)
        work = _Work(function=function.encode(), dynamic_shared=shared, seed=seed, most_instructions=most_instructions)
        work.grid[:] = [*grid, 1, 1][:3]
        work.block[:] = [*block, 1, 1][:3]
        arrays = [value for value in values if isinstance(value, np.ndarray)]
        ranges = np.array([[array.ctypes.data, array.nbytes] for array in arrays], np.uint64).reshape(-1, 2)
        kept = [np.uint64(v.ctypes.data) if isinstance(v, np.ndarray) else _scalar(v) for v in values]
        held = [np.atleast_1d(value) for value in kept]
        work.parameters = (ctypes.c_void_p * max(1, len(held)))(*(one.ctypes.data for one in held))
        work.ranges = ranges.ctypes.data_as(ctypes.POINTER(ctypes.c_uint64))
        work.range_count = len(ranges)
        error = ctypes.create_string_buffer(1000)
        if not _library().module_launch(self._handle, work, error, len(error)):
            raise KernelFailed(error.value.decode())


def _scalar(value: int | float | np.generic) -> np.generic:
    return value if isinstance(value, np.generic) else _SCALARS[type(value)](value)
