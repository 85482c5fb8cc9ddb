"""A GPU in software (see tests/support/software_gpu): PTX run by this CPU, and a driver over it."""

import ctypes
import functools
from pathlib import Path

from support.cuda_headers import include_flags
from support.native import Isa, compile_native, runs_here

FOLDER = Path(__file__).parent / "software_gpu"
FLAGS = ("-fno-strict-aliasing", "-Wno-restrict", *include_flags())
"""Registers are read as integers and as floats; GCC 12 warns of its own strings."""


def isa() -> Isa:
    """What this CPU can do."""
    return "avx512" if runs_here("avx512") else "avx2" if runs_here("avx2") else "portable"


@functools.cache
def numbers() -> ctypes.CDLL:
    """Its arithmetic alone."""
    names = ("numbers", "floats", "small_floats", "comparisons", "conversions", "bits", "tensor", "wgmma", "harness")
    built = compile_native([FOLDER / f"{name}.cpp" for name in names], isa=isa(), flags=FLAGS)
    built.number_signature.restype = ctypes.c_uint64
    return built
