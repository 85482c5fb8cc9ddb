"""The native program of a model: emitted as C++, and compiled when it first runs or is saved."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmc.codegen.cpp.emit import CpuSource, emit
from llmc.codegen.cpp.toolchain import Compiler, Library, compile_levels, find_compiler
from llmc.codegen.describe import describe
from llmc.codegen.explanation import ProgramExplanation
from llmc.codegen.regions import TorchRegion
from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.torch_calls import write_calls
from llmc.codegen.torch_host import TorchHost
from llmc.codegen.unlowered import Unlowered
from llmc.errors import BuildFailed, MissingTool
from llmc.ir.model import Model
from llmc.ir.weights import bytes_of_each
from llmc.options import Options, cache_directory
from llmc.runtime.cpu_features import choose, levels
from llmc.runtime.cpu_program import CpuProgram
from llmc.runtime.crossover import Crossover
from llmc.runtime.memory import Bytes, Region, padded
from llmc.runtime.program import CacheSpec


@dataclass(frozen=True)
class NativeProgram:
    """Source and compiler of a native program."""

    source: CpuSource
    compiler: Compiler

    def compile(self, wanted: Sequence[str] | None = None) -> dict[str, Library]:
        """The libraries of the levels `wanted`, of all when None, best first. Raises BuildFailed."""
        return compile_levels(self.source.text, wanted, cache=cache_directory(), compiler=self.compiler)

    def explain(self, model: Model) -> ProgramExplanation:
        """The program's regions, kernels and predicted costs; `model` is the graph that it was emitted from.

        Costs are those of a machine that is always the same, so that equal builds explain themselves equally.
        """
        default = Crossovers(default=Crossover(2, 128, "the default until `llmc tune` has measured"))
        source = self.source
        memory = str(source.description["memory"])
        target = Target.preset("avx512")
        return describe(model, source.regions, source.functions, source.loops, source.text, memory, target, default)

    def open(self, model: Model) -> CpuProgram:
        """The program in this process, with the weights of `model` evaluated one by one. Raises BuildFailed."""
        best, _ = choose({level: level for level in self.compiler.levels}, levels())
        return CpuProgram(self.compile([best])[best].path, _evaluated(model, self.source.weights), host=self._host())

    def _host(self) -> TorchHost | None:
        """What computes the parts that have no native form; these may be ops that no artifact can hold."""
        calls = {part.spelled: part.call for part in self.source.regions if isinstance(part, TorchRegion)}
        numbers = {spelled: place for place, spelled in enumerate(self.source.torch)}
        ordered = sorted(calls, key=numbers.__getitem__)
        return TorchHost([calls[spelled] for spelled in ordered], write_calls(ordered)) if ordered else None


def native_compiler(options: Options) -> tuple[Compiler | None, str]:
    """The compiler for a native program; None, with the reason, where the reference program is to be built instead.

    Raises MissingTool if a native program is asked for and no compiler is found, BadOption for one that is none.
    """
    if options.program == "reference" or "cpu" not in options.targets:
        return None, "native code was not asked for"
    if options.program is None and options.stop_after is not None:
        return None, "only some rewrites were asked for"
    try:
        return find_compiler(options.compiler), ""
    except MissingTool as error:
        if options.program is not None:
            raise
        return None, str(error)


def emit_native(
    model: Model, caches: Sequence[CacheSpec], compiler: Compiler, *, strict: bool
) -> tuple[NativeProgram | None, str]:
    """The native program of a packed graph, in which torch computes what has no native form; None, with the reason, if
    it has a part that can only be run with the whole graph.

    Raises BuildFailed for anything that has no native form if `strict`.
    """
    try:
        return NativeProgram(emit(model, caches, leave_to_torch=not strict), compiler), ""
    except Unlowered as error:
        if strict:
            where = error.node.meta.get("origin", "unknown origin")
            raise BuildFailed(
                f"native program: {error} ({where}) has no native form; leave out --strict to have torch compute it"
            ) from error
        return None, f"no native form: {error}"


def _evaluated(model: Model, names: Sequence[str]) -> Mapping[str, Bytes]:
    """The bytes of the weights `names`, in one piece of memory."""
    wanted = {name: weight for name, weight in model.weights.items() if name in set(names)}
    sizes = {name: math.prod(weight.shape) * weight.dtype.itemsize for name, weight in wanted.items()}
    region = Region(sum(map(padded, sizes.values())))
    places = {name: region.carve(size) for name, size in sizes.items()}
    for name, value in bytes_of_each(wanted):
        places[name][:] = value
    return places
