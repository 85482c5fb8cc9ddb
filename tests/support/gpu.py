"""Programs on this machine's GPU, for tests and benchmarks."""

import numpy as np
import pytest
import torch

import llmc
from llmc.errors import MissingTool
from llmc.ir.weights import evaluate_each
from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.driver import Driver, Gpu
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
    target = target_of(gpu)
    build = llmc.compile(module, target=target, prove=False, **options)._build
    assert build is not None and build.gpu is not None
    images = {
        name: Image(binary.code, binary.symbol, binary.shared, binary.threads)
        for name, binary in build.gpu.compile(target).items()
    }
    weights = {name: plain(value) for name, value in evaluate_each(build.model.weights)}
    return GpuProgram(build.gpu.sources[target].plan, CudaDevice(driver, gpu, images), weights)


def plain(value: torch.Tensor) -> np.ndarray:
    """A weight as its bytes."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy()
