"""A driver and a cuBLAS without a GPU (see fake_libcuda.cpp, fake_libcublas.cpp), and what has happened in them."""

import ctypes
from pathlib import Path

import pytest
from support.cuda_headers import cuda_headers, include_flags
from support.native import compile_native
from support.tiny_gpu_program import PLAN

from llmc.runtime.cuda.cublas import NO_CUBLAS, FoundCublas, find_cublas
from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.driver import Driver

COUNTS = (
    "bytes", "streams", "events", "modules", "graphs", "pinned", "contexts", "launches", "programmatic", "replays",
    "recordings",
)  # fmt: skip
IMAGES = {kernel.name: Image(b"fake", kernel.name, 49_153, 32 * kernel.warps) for kernel in PLAN.kernels}


def library(*macros: str) -> ctypes.CDLL:
    """The fakes, compiled against the cuda.h that Triton ships, and the cublas_api.h of a wheel where there is one.

    Skips the test where there is no cuda.h.
    """
    if not cuda_headers():
        pytest.skip("no cuda.h: Triton ships it")
    sources = [Path(__file__).parent / name for name in ("fake_libcuda.cpp", "fake_kernels.cpp", "fake_libcublas.cpp")]
    flags = [*include_flags(), "-O0", *(f"-D{macro}" for macro in macros)]
    return compile_native(sources, isa="portable", flags=flags)


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
    numbers = (ctypes.c_int64 * 2)()
    library(*macros).fake_products(numbers)
    return counts_of(library(*macros)) | {"handles": numbers[0], "products": numbers[1]}


def counts_of(driver: ctypes.CDLL) -> dict[str, int]:
    """What is there of a driver without a GPU, and what was done by it."""
    numbers = (ctypes.c_int64 * len(COUNTS))()
    driver.fake_counts(numbers)
    return dict(zip(COUNTS, numbers, strict=True))
