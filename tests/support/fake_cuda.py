"""A driver without a GPU (see fake_libcuda.cpp), and what has happened in it."""

import ctypes
from pathlib import Path

import pytest
from support.native import compile_native
from support.tiny_gpu_program import PLAN

from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.driver import Driver

COUNTS = (
    "bytes", "streams", "events", "modules", "graphs", "pinned", "contexts", "launches", "programmatic", "replays"
)  # fmt: skip
IMAGES = {kernel.name: Image(b"fake", kernel.name, 49_153, 32 * kernel.warps) for kernel in PLAN.kernels}


def library(*macros: str) -> ctypes.CDLL:
    """The fake, compiled against the cuda.h that Triton ships. Skips the test where there is none."""
    triton = pytest.importorskip("triton")
    include = Path(triton.__file__).parent / "backends/nvidia/include"
    if not (include / "cuda.h").exists():
        pytest.skip("this Triton ships no cuda.h")
    source = Path(__file__).parent / "fake_libcuda.cpp"
    return compile_native(
        source, isa="portable", flags=["-isystem", str(include), "-O0", *(f"-D{macro}" for macro in macros)]
    )


def driver(*macros: str) -> Driver:
    """The runtime's driver on the fake."""
    return Driver(library(*macros)._name)


def device(*macros: str) -> CudaDevice:
    """A device of it with the kernels of the tiny program."""
    made = driver(*macros)
    return CudaDevice(made, made.gpus()[0], IMAGES)


def counts(*macros: str) -> dict[str, int]:
    """What is there, and what was done."""
    numbers = (ctypes.c_int64 * len(COUNTS))()
    library(*macros).fake_counts(numbers)
    return dict(zip(COUNTS, numbers, strict=True))
