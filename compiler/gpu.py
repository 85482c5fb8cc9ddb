"""The GPU programs of a model: emitted for each target, and compiled when they are saved or run."""

from collections.abc import ItemsView, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from llmc.codegen.describe import describe
from llmc.codegen.explanation import ProgramExplanation
from llmc.codegen.target import Target
from llmc.codegen.triton.compile import Binary, check_triton, compile_kernels
from llmc.codegen.triton.emit import GpuSource, emit
from llmc.codegen.unlowered import Unlowered
from llmc.errors import BuildFailed, MissingTool
from llmc.ir.model import Model
from llmc.ir.weights import Weight, bytes_of_each
from llmc.options import THIS_GPU, Options, cache_directory, chosen_cublas
from llmc.runtime.checked_json import canonical
from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.open_session import candidates, cublas_for
from llmc.runtime.cuda.plan_file import write_plan
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.native_trust import keep
from llmc.runtime.program import CacheSpec
from llmc.runtime.tuning import read_gpu_tuning


@dataclass(frozen=True)
class GpuPrograms:
    """One program for each target."""

    sources: Mapping[str, GpuSource]
    triton: str
    """The version of the compiler."""

    def report(self) -> dict[str, object]:
        """Facts for the report of the build, by target."""
        return {
            level: {
                "regions": len(source.regions),
                "launches": len(source.plan.launches),
                "kernels": len(source.plan.kernels),
                "memory": str(source.memory),
            }
            for level, source in self.sources.items()
        }

    def compile(self, level: str) -> dict[str, Binary]:
        """The kernels of one target, by name; from the cache where they are known. Raises BuildFailed."""
        return compile_kernels(self.sources[level].kernels, level, cache=cache_directory())

    def explain(self, model: Model, level: str) -> ProgramExplanation:
        """A target's regions, the kernels that compute one token, and predicted costs; `model` is the packed graph."""
        source = self.sources[level]
        functions = [source.kernels_of(number)[0] for number in range(len(source.regions))]
        target = Target.preset(level)
        memory = str(source.memory)
        return describe(model, source.regions, functions, (), source.text, memory, target, notes=source.notes)

    def open(self, model: Model) -> GpuProgram | None:
        """The program on this machine's GPU; None where there is none that one of the targets is for.

        `model` is the packed graph, whose weights are evaluated one by one. Raises BuildFailed, DeviceFailed, and
        OutOfMemory if the GPU has no room for the weights.
        """
        try:
            driver = Driver()
            gpu = driver.gpus()[0]
        except MissingTool:
            return None
        for level, compiled in candidates(self.sources, gpu):
            images = {name: _image(binary, compiled) for name, binary in self.compile(level).items()}
            plan, tuned = self.sources[level].plan, read_gpu_tuning(cache_directory(), gpu.kind)
            device = CudaDevice(driver, gpu, images, cublas_for(plan, driver, chosen_cublas()))
            weights = _Evaluated({name: model.weights[name] for name in plan.weights})
            return GpuProgram(plan, device, weights, tuned)
        return None

    def files(self, model: Model) -> dict[str, tuple[str, bytes]]:
        """Everything, compiled: for each role in the manifest the name of a file, and what it holds.

        `model` is the packed graph. Raises BuildFailed.
        """
        made: dict[str, tuple[str, bytes]] = {}
        for level, source in self.sources.items():
            binaries = self.compile(level)
            images = {name: _image(binary, True) for name, binary in binaries.items()}
            ptx = {name: _image(binary, False) for name, binary in binaries.items() if binary.portable}
            document, code = write_plan(source.plan, images, ptx, {"triton": self.triton})
            keep(cache_directory(), code)
            made[level] = f"program/cuda-{level}.json", document
            made[f"{level}.bin"] = f"program/cuda-{level}.bin", code
            made[f"{level}.py"] = f"program/cuda-{level}.py", source.text.encode()
            explanation = self.explain(model, level).to_json()
            made[f"{level}.explanation"] = f"program/cuda-{level}-explanation.json", canonical(explanation)
        return made


def on_this_machine(options: Options) -> Options:
    """The same options with the target of this machine's GPU in place of "cuda". Raises MissingTool without a GPU."""
    if THIS_GPU not in options.targets:
        return options
    try:
        gpu = Driver().gpus()[0]
    except MissingTool as error:
        raise MissingTool(
            f"target: {THIS_GPU!r} stands for this machine's GPU; {error}; name a target such as sm_90 to build for"
            " another machine"
        ) from None
    level = gpu.target
    if level == "cpu":
        raise MissingTool(f"target: no kernels are made for {gpu.name} ({gpu.level}); use --target cpu")
    targets = [level if target == THIS_GPU else target for target in options.targets]
    return replace(options, targets=tuple(dict.fromkeys(targets)))


def emit_gpu(model: Model, caches: Sequence[CacheSpec], levels: Sequence[str]) -> GpuPrograms | None:
    """The GPU programs of a packed graph, None if `levels` is empty.

    Raises MissingTool without Triton, and BuildFailed if a part of the model has no form on a GPU.
    """
    if not levels:
        return None
    triton = check_triton()
    try:
        return GpuPrograms({level: emit(model, caches, Target.preset(level)) for level in levels}, triton)
    except Unlowered as error:
        where = error.node.meta.get("origin", "unknown origin")
        raise BuildFailed(
            f"GPU program: {error} ({where}) has no form on a GPU; leave out --target to get a program for CPUs"
        ) from error


class _Evaluated(Mapping[str, npt.NDArray[Any]]):
    """Weights as bytes, evaluated when they are asked for; `items` computes outputs of one call once."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self.weights = weights

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        ((_, value),) = bytes_of_each({name: self.weights[name]})
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def items(self) -> ItemsView[str, npt.NDArray[Any]]:
        return _EvaluatedItems(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


class _EvaluatedItems(ItemsView[str, npt.NDArray[Any]]):
    def __init__(self, mapping: _Evaluated) -> None:
        super().__init__(mapping)
        self._weights = mapping.weights

    def __iter__(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        return bytes_of_each(self._weights)


def _image(binary: Binary, compiled: bool) -> Image:
    """Machine code, or else the text that it was assembled from."""
    assert compiled or binary.portable, "only targets whose PTX is kept are candidates for it"
    content = binary.code if compiled else binary.assembly.encode()
    return Image(content, binary.symbol, binary.shared, binary.threads)
