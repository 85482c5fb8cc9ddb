"""Programs on this machine's GPU, for tests and benchmarks."""

from collections.abc import Callable

import pytest
import torch

import llmc
from llmc.codegen.triton.compile import Binary
from llmc.errors import MissingTool
from llmc.ir.weights import bytes_of_each
from llmc.options import TARGETS
from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.driver import Driver, Gpu
from llmc.runtime.cuda.open_session import candidates, cublas_for
from llmc.runtime.cuda.program import GpuProgram


def find_gpu() -> tuple[Driver, Gpu]:
    """The driver and the first GPU; skips the test where there is none."""
    try:
        driver = Driver()
        return driver, driver.gpus()[0]
    except MissingTool as error:
        pytest.skip(f"no GPU: {error}")


def target_of(gpu: Gpu) -> str:
    """The target whose code runs on a GPU; skips the test if there is none."""
    for target, compiled_for_it in candidates(TARGETS, gpu):
        if compiled_for_it:
            return target
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
    weights = dict(bytes_of_each(build.model.weights))
    plan = build.gpu.sources[target].plan
    device = CudaDevice(driver, driver.gpus()[0], images, cublas_for(plan, driver, cublas))
    return GpuProgram(plan, device, weights)
