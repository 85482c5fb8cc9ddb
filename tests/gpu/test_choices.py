"""Tokens chosen on the GPU from rows as long as those of models: the host's."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import choice_steps, gpu_choices
from support.gpu import target_of

from llmc.codegen.triton.compile import compile_kernels
from llmc.codegen.triton.kernel import KernelText
from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.device import Grid, Place
from llmc.runtime.cuda.driver import Driver, Gpu
from llmc.runtime.cuda.plan import Kernel


@pytest.mark.parametrize("vocabulary", [32000, 50257, 128256, 262144])
def test_tokens_are_those_of_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: Driver, gpu: Gpu, vocabulary: int
) -> None:
    run_on(monkeypatch, driver, gpu, tmp_path)
    gpu_choices.tokens_are_those_of_the_host(target_of(gpu), vocabulary)


def run_on(monkeypatch: pytest.MonkeyPatch, driver: Driver, gpu: Gpu, cache: Path) -> None:
    """Let the harness that interprets kernels compile them, and run them on the GPU."""

    def load_kernels(kernels: Mapping[str, KernelText]) -> SimpleNamespace:
        found = compile_kernels(kernels, target_of(gpu), cache=cache)
        images = {name: Image(each.code, each.symbol, each.shared, each.threads) for name, each in found.items()}
        device = CudaDevice(driver, gpu, images)
        made = {
            name: Kernel(name, tuple(text.parameters), text.warps, text.stages, text.pdl)
            for name, text in kernels.items()
        }
        return SimpleNamespace(**{name: (device, kernel) for name, kernel in made.items()})

    def launch(loaded: tuple[CudaDevice, Kernel], grid: Grid, *arguments: Any) -> None:
        device, kernel = loaded
        tensors = {at: value for at, value in enumerate(arguments) if isinstance(value, torch.Tensor)}
        places = {at: Place(device.allocate(value.nbytes), 0) for at, value in tensors.items()}
        for at, value in tensors.items():
            device.upload(places[at], value.numpy())
        device.launch(kernel, grid, [places.get(at, value) for at, value in enumerate(arguments)], kernel.pdl)
        for at, value in tensors.items():
            device.download(places[at], value.numpy())

    monkeypatch.setattr(choice_steps, "module_text", lambda kernels, title: kernels)
    monkeypatch.setattr(choice_steps, "load_kernels", load_kernels)
    monkeypatch.setattr(choice_steps, "launch", launch)
