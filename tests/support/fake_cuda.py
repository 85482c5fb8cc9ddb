"""A driver and a cuBLAS without a GPU (see fake_libcuda.cpp, fake_libcublas.cpp), and what has happened in them."""

import ctypes
import sys
from pathlib import Path

import pytest
from support.native import compile_native
from support.tiny_gpu_program import PLAN

from llmc.runtime.cuda.cublas import NO_CUBLAS, FoundCublas, find_cublas
from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.driver import Driver

COUNTS = (
    "bytes", "streams", "events", "modules", "graphs", "pinned", "contexts", "launches", "programmatic", "replays"
)  # fmt: skip
IMAGES = {kernel.name: Image(b"fake", kernel.name, 49_153, 32 * kernel.warps) for kernel in PLAN.kernels}


def library(*macros: str) -> ctypes.CDLL:
    """The fakes, compiled against the cuda.h that Triton ships, and the cublas_api.h of a wheel where there is one.

    Skips the test where there is no cuda.h.
    """
    triton = pytest.importorskip("triton")
    include = Path(triton.__file__).parent / "backends/nvidia/include"
    if not (include / "cuda.h").exists():
        pytest.skip("this Triton ships no cuda.h")
    wheels = [Path(folder, "nvidia/cu13/include") for folder in sys.path]
    headers = [*(wheel for wheel in wheels if (wheel / "cublas_api.h").exists()), include]
    sources = [Path(__file__).parent / name for name in ("fake_libcuda.cpp", "fake_kernels.cpp", "fake_libcublas.cpp")]
    flags = [flag for folder in headers for flag in ("-isystem", str(folder))]
    return compile_native(sources, isa="portable", flags=[*flags, "-O0", *(f"-D{macro}" for macro in macros)])


def driver(*macros: str) -> Driver:
    """The runtime's driver on the fake."""
    return Driver(library(*macros)._name)


def cublas(*macros: str) -> FoundCublas:
    """The library of products of the fake."""
    return find_cublas(12040, library(*macros)._name)


def device(*macros: str, cublas: FoundCublas = NO_CUBLAS) -> CudaDevice:
    """A device of it with the kernels of the tiny program."""
    made = driver(*macros)
    return CudaDevice(made, made.gpus()[0], IMAGES, cublas)


def counts(*macros: str) -> dict[str, int]:
    """What is there, and what was done."""
    numbers = (ctypes.c_int64 * len(COUNTS))()
    library(*macros).fake_counts(numbers)
    found = dict(zip(COUNTS, numbers, strict=True))
    library(*macros).fake_products(numbers)
    return found | {"handles": numbers[0], "products": numbers[1]}
