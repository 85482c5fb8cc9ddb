"""The GPU programs of a model: emitted for each target, and compiled when they are saved."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmc.codegen.describe import describe
from llmc.codegen.explanation import ProgramExplanation
from llmc.codegen.target import Target
from llmc.codegen.triton.compile import Binary, check_triton, compile_kernels
from llmc.codegen.triton.emit import GpuSource, emit
from llmc.codegen.unlowered import Unlowered
from llmc.errors import BuildFailed
from llmc.ir.model import Model
from llmc.options import cache_directory
from llmc.runtime.checked_json import canonical
from llmc.runtime.cuda import plan_file
from llmc.runtime.native_trust import keep
from llmc.runtime.program import CacheSpec


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
        return describe(model, source.regions, functions, (), source.text, str(source.memory), target)

    def files(self, model: Model) -> dict[str, tuple[str, bytes]]:
        """Everything, compiled: for each role in the manifest the name of a file, and what it holds.

        `model` is the packed graph. Raises BuildFailed.
        """
        made: dict[str, tuple[str, bytes]] = {}
        for level, source in self.sources.items():
            code, document = _file(source, self.compile(level), self.triton)
            keep(cache_directory(), code)
            made[level] = f"program/cuda-{level}.json", json.dumps(document, sort_keys=True).encode()
            made[f"{level}.bin"] = f"program/cuda-{level}.bin", code
            made[f"{level}.py"] = f"program/cuda-{level}.py", source.text.encode()
            explanation = self.explain(model, level).to_json()
            made[f"{level}.explanation"] = f"program/cuda-{level}-explanation.json", canonical(explanation)
        return made


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


def _file(source: GpuSource, binaries: Mapping[str, Binary], triton: str) -> tuple[bytes, dict[str, object]]:
    """The code of all kernels one after another, and the document that says where each begins."""
    code = bytearray()

    def place(name: str, content: bytes, shared: int) -> plan_file.Binary:
        start = len(code)
        code.extend(content)
        binary = binaries[name]
        return plan_file.Binary(binary.symbol, start, len(content), shared, binary.threads)

    cubins = {name: place(name, binary.code, binary.shared) for name, binary in binaries.items()}
    ptx = {
        name: place(name, binary.ptx, binary.ptx_shared) for name, binary in binaries.items() if binary.ptx is not None
    }
    return bytes(code), plan_file.to_json(source.plan, cubins, ptx, {"triton": triton})
