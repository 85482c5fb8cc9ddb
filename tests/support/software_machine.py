"""PTX on arrays: kernels run by this CPU, one instruction after another, and whatever they do wrong is an error."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from support.native import compile_native
from support.software_cuda import FLAGS, FOLDER, isa

_PARTS = (
    "arithmetic", "ptx_tokens", "ptx_text", "decode", "decode_others", "load", "definitions", "memory", "shared",
    "block", "control", "threads", "transfers", "lanes", "matrices", "machine",
    "numbers", "floats", "small_floats", "comparisons", "conversions", "bits", "tensor", "wgmma",
)  # fmt: skip
SOURCES = tuple(FOLDER / f"{part}.cpp" for part in _PARTS)
"""What the machine is made of."""
Array = npt.NDArray[Any]
_SCALARS: dict[type, type[np.generic]] = {int: np.int32, float: np.float32}


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
        ("most_instructions", ctypes.c_uint64),
        ("programmatic", ctypes.c_bool),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    built = compile_native([*SOURCES, FOLDER / "exports.cpp"], isa=isa(), flags=FLAGS)
    pointer, number, text = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p
    for name, result, arguments in (
        ("module_load", pointer, [text, text, number]),
        ("module_free", None, [pointer]),
        ("module_launch", ctypes.c_bool, [pointer, pointer, ctypes.POINTER(_Work), text, number]),
        ("memory_make", pointer, [ctypes.c_bool]),
        ("memory_free", None, [pointer]),
        ("memory_add", None, [pointer, number, number]),
        ("memory_written", ctypes.c_bool, [pointer, number, number, pointer]),
    ):
        function = getattr(built, name)
        function.restype, function.argtypes = result, arguments
    return built


class DeviceMemory:
    """Arrays that kernels may access, and what is known of the accesses to them."""

    def __init__(self, *arrays: Array, notes_accesses: bool = True) -> None:
        """Without `notes_accesses` races are not looked for."""
        self.handle = _library().memory_make(notes_accesses)
        self._arrays: list[Array] = []
        for array in arrays:
            self.add(array)

    def add(self, array: Array) -> None:
        """Let kernels access an array."""
        assert array.flags.c_contiguous
        if array.nbytes:
            self._arrays.append(array)
            _library().memory_add(self.handle, array.ctypes.data, array.nbytes)

    def written(self, array: Array) -> npt.NDArray[np.bool_]:
        """[bytes of the array] whether the last launch has written each."""
        found = np.zeros(array.nbytes, np.bool_)
        assert _library().memory_written(self.handle, array.ctypes.data, array.nbytes, found.ctypes.data)
        return found

    def __del__(self) -> None:
        _library().memory_free(self.handle)


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
        values: Sequence[Array | np.generic | float],
        *,
        shared: int = 0,
        seed: int = 0,
        memory: DeviceMemory | None = None,
        programmatic: bool = False,
        most_instructions: int = 0,
    ) -> DeviceMemory:
        """Run `function` on a grid of blocks, in an order that depends on `seed`; the memory as it is known after.

        Arrays are handed over as pointers, and theirs is the memory that it may touch, with that of `memory`; a Python
        integer is 32 bits. With `programmatic` it may begin before the launch before it on that memory has ended.
        Raises KernelFailed.
        """
        memory = memory or DeviceMemory()
        block = [threads] if isinstance(threads, int) else list(threads)
        work = _Work(function=function.encode(), dynamic_shared=shared, seed=seed, most_instructions=most_instructions)
        work.programmatic = programmatic
        work.grid[:] = [*grid, 1, 1][:3]
        work.block[:] = [*block, 1, 1][:3]
        held = []
        for value in values:
            if isinstance(value, np.ndarray):
                memory.add(value)
                value = np.uint64(value.ctypes.data)
            elif not isinstance(value, np.generic):
                value = _SCALARS[type(value)](value)
            held.append(np.atleast_1d(value))
        work.parameters = (ctypes.c_void_p * max(1, len(held)))(*(one.ctypes.data for one in held))
        error = ctypes.create_string_buffer(1000)
        if not _library().module_launch(self._handle, memory.handle, work, error, len(error)):
            raise KernelFailed(error.value.decode())
        return memory
