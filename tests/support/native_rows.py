"""The row kernels as Python functions, for the tests of tests/kernels: one harness a instruction level."""

import ctypes
import functools

import torch
from support.native import Isa, compile_native
from torch import Tensor

SIZES = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 130, 576, 1021)
"""Lengths of rows: one, primes, whole vectors and their neighbours."""


@functools.cache
def row_kernels(isa: Isa) -> ctypes.CDLL:
    """The functions of rows_harness.h."""
    return compile_native('#include "rows_harness.h"\n', isa=isa)


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's first element is."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def size(n: int) -> ctypes.c_int64:
    """A number as the kernels take sizes and steps."""
    return ctypes.c_int64(n)


def strided(n: int, step: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A buffer and the n elements of it that are `step` apart."""
    buffer = torch.randn((n - 1) * step + 1, generator=torch.Generator().manual_seed(seed))
    return buffer, buffer[::step]
