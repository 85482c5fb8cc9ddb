"""Programs on this machine's GPU, for tests and benchmarks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import llmc
from llmc.codegen.triton.compile import Binary
from llmc.errors import MissingTool
from llmc.ir.weights import evaluate_each
from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.driver import Driver, Gpu
from llmc.runtime.cuda.open_session import cublas_for
from llmc.runtime.cuda.program import GpuProgram

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100")
"""What programs are made for."""


def find_gpu() -> tuple[Driver, Gpu]:
    """The driver and the first GPU; skips the test where there is none."""
    try:
        driver = Driver()
        return driver, driver.gpus()[0]
    except MissingTool as error:
        pytest.skip(f"no GPU: {error}")


def target_of(gpu: Gpu) -> str:
    """The target whose code runs on a GPU; skips the test if there is none."""
    if gpu.level in TARGETS:
        return gpu.level
    if gpu.capability[0] == 8:
        return "sm_80"
    pytest.skip(f"no target for {gpu.name} ({gpu.level})")


def on_gpu(module: torch.nn.Module, **options: object) -> GpuProgram:
    """The program of a module, compiled here and loaded on the GPU."""
    driver, gpu = find_gpu()

    def machine_code(binary: Binary) -> Image:
        return Image(binary.code, binary.symbol, binary.shared, binary.threads)

    return compiled(module, target_of(gpu), driver, machine_code, **options)


def compiled(
    module: torch.nn.Module,
    target: str,
    driver: Driver,
    image: Callable[[Binary], Image],
    *,
    cublas: str = "",
    **options: object,
) -> GpuProgram:
    """The program of a module for a target on the first GPU of a driver, which is given images of its kernels.

    cublas: the library of products (see `find_cublas`).
    """
    build = llmc.compile(module, target=target, prove=False, **options)._build
    assert build is not None and build.gpu is not None
    images = {name: image(binary) for name, binary in build.gpu.compile(target).items()}
    weights = {name: plain(value) for name, value in evaluate_each(build.model.weights)}
    plan = build.gpu.sources[target].plan
    device = CudaDevice(driver, driver.gpus()[0], images, cublas_for(plan, driver, cublas))
    return GpuProgram(plan, device, weights)


def plain(value: torch.Tensor) -> np.ndarray:
    """A weight as its bytes."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy()
