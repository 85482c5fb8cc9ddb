"""The runtime's driver over a GPU in software: a libcuda whose kernels are PTX that this CPU runs."""

import ctypes
import functools

import pytest
import torch
from support.cuda_headers import cuda_headers
from support.fake_cuda import counts_of
from support.gpu import compiled
from support.gpu_zoo import OnGpu
from support.native import compile_native
from support.software_cuda import FLAGS, FOLDER, isa
from support.software_machine import SOURCES

from llmc.codegen.triton.compile import Binary
from llmc.runtime.cuda.cuda_device import Image
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.program import GpuProgram

SHARED_BYTES = {(8, 0): 166_912, (9, 0): 232_448, (12, 0): 101_376}
"""Shared memory of a block of GPUs by capability, from the CUDA C++ Programming Guide."""
CAPABILITIES = {"sm_80": (12, 0), "sm_90": (9, 0)}
"""GPUs that run PTX for a target: none that came later runs that of sm_90."""


@functools.cache
def library() -> ctypes.CDLL:
    """The libcuda. Skips the test where there is no cuda.h."""
    if not cuda_headers():
        pytest.skip("no cuda.h: Triton ships it")
    support = FOLDER.parent
    halves = [support / "fake_libcuda.cpp", support / "fake_libcublas.cpp", FOLDER / "kernels.cpp"]
    return compile_native([*SOURCES, *halves], isa=isa(), flags=FLAGS)


def driver(capability: tuple[int, int] = (12, 0), *, finds_races: bool = True) -> Driver:
    """The runtime's driver of one GPU of a capability, which those that were there before become too.

    Races in its memory take 32 bytes for each that is accessed to find.
    """
    library().fake_forget_failure()
    changed = library().software_gpu_become(*capability, SHARED_BYTES[capability], finds_races)
    assert changed, "memory of a GPU without notes of who accesses it is still there"
    return Driver(library()._name)


def on_software_gpu(target: str, cublas: str = "none") -> OnGpu:
    """Compiles modules for a target, and loads them on the GPU that runs its PTX, with a library of products."""

    def text(binary: Binary) -> Image:
        return Image(binary.assembly.encode(), binary.symbol, binary.shared, binary.threads)

    def on_gpu(module: torch.nn.Module, **options: object) -> GpuProgram:
        return compiled(module, target, driver(CAPABILITIES[target]), text, cublas=cublas, **options)

    return on_gpu


def counts() -> dict[str, int]:
    """What is there, and what was done."""
    return counts_of(library())
