"""A whole program as one C++ translation unit.

Each region becomes a function; regions that differ only in the weights, caches and buffers that they are given share
one, and the layers that repeat become a loop over a table of weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count

from llmc.codegen.arrange import arrange
from llmc.codegen.cpp.calls import Arguments, make_call
from llmc.codegen.cpp.emit_attention import emit_attention
from llmc.codegen.cpp.emit_experts import emit_experts, shape_of
from llmc.codegen.cpp.emit_linear import emit_linear, shared_terms
from llmc.codegen.cpp.emit_rows import emit_row_op
from llmc.codegen.cpp.emit_torch import emit_torch
from llmc.codegen.cpp.function import Function
from llmc.codegen.lifetimes import Rolled, live_buffers
from llmc.codegen.lower import Lowered, lower
from llmc.codegen.native_share import native_share
from llmc.codegen.plan_memory import Plan, plan
from llmc.codegen.regions import Attention, Experts, Linear, Region, RowRegion, TorchRegion
from llmc.codegen.repeats import Loop
from llmc.codegen.torch_calls import digest, write_calls
from llmc.codegen.unlowered import Unlowered
from llmc.codegen.walk import touched
from llmc.ir.model import Model
from llmc.runtime.program import CacheSpec

SIZES = {"f32": 4, "f16": 2, "bf16": 2, "i64": 8, "u8": 1}
"""Bytes of the elements of buffers."""
ELEMENTS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Int8"}
"""C++ names of the dtypes of a cache."""
_HEADERS = (
    "activation", "attention", "cache", "elementwise", "engine", "gather", "linear", "norm", "rope", "rows",
    "sample_function", "topk",
)  # fmt: skip


@dataclass(frozen=True)
class CpuSource:
    """A generated program."""

    text: str
    """The translation unit; it includes headers of `llmc/`."""
    weights: tuple[str, ...]
    """Names of the weights in the order in which the program takes them."""
    description: dict[str, object]
    """Facts for the report."""
    regions: tuple[Region, ...]
    """In the order in which they run."""
    functions: tuple[str, ...]
    """The C++ function of each region."""
    loops: tuple[Loop, ...]
    torch: tuple[str, ...]
    """The calls that it has torch compute, as `llmc.codegen.torch_calls` spells them; empty if all of it is native."""


def emit(model: Model, caches: Iterable[CacheSpec], *, leave_to_torch: bool = False) -> CpuSource:
    """The program of a packed graph, in which torch computes what has no native form if it may.

    Raises `llmc.codegen.unlowered.Unlowered` for what remains.
    """
    caches = tuple(caches)
    for layer, cache in enumerate(caches):
        if cache.dtype not in ELEMENTS:
            node = next(node for node in model.inputs() if node.name == f"k_cache_{layer}")
            raise Unlowered(node, f"a cache in {cache.dtype}; use {', '.join(ELEMENTS)}", final=True)
    emitted = _Emitter(lower(model, leave_to_torch=leave_to_torch), caches).run()
    return replace(emitted, description={**emitted.description, **native_share(model, emitted.regions)})


class _Emitter:
    def __init__(self, lowered: Lowered, caches: tuple[CacheSpec, ...]) -> None:
        self.lowered = lowered
        self.caches = caches
        self.torch = list(dict.fromkeys(part.spelled for part in lowered.regions if isinstance(part, TorchRegion)))
        calls = [make_call(region, self._function(region)) for region in lowered.regions]
        logits = [buffer.key for call in calls for buffer in call.buffers if buffer.place == "logits"]
        order, self.loops = arrange([call.item for call in calls], results=logits)
        self.calls = [calls[number] for number in order]
        items = [call.item for call in self.calls]
        rolled = Rolled(items, self.loops)
        buffers = {buffer.key: buffer for call in self.calls for buffer in touched(call.region)}
        sizes = {key: (buffer.width * SIZES[buffer.dtype], "token") for key, buffer in buffers.items()}
        self.memory: Plan = plan(live_buffers(items, self.loops, sizes, results=logits))  # type: ignore[arg-type]
        index = {name: place for place, name in enumerate(lowered.weights)}
        self.arguments = Arguments(index, self.memory.offsets, {key: rolled.twin(key) for key in buffers})
        self.names: dict[str, str] = {}
        self.numbers: dict[str, count[int]] = {}

    def run(self) -> CpuSource:
        functions = tuple(self._name(call.function) for call in self.calls)
        definitions = self._definitions(functions)
        step = self._step(functions)
        text = "\n".join([*self._head(), *definitions, *step, *self._tail()]) + "\n"
        description: dict[str, object] = {
            "regions": len(self.calls),
            "functions": len(self.names),
            "loops": [{"start": loop.start, "regions": loop.period, "times": loop.count} for loop in self.loops],
            "memory": str(self.memory),
        }
        regions = tuple(call.region for call in self.calls)
        weights, calls = tuple(self.lowered.weights), tuple(self.torch)
        return CpuSource(text, weights, description, regions, functions, self.loops, calls)

    def _function(self, region: Region) -> Function:
        if isinstance(region, Linear):
            return emit_linear(region)
        if isinstance(region, Attention):
            return emit_attention(region)
        if isinstance(region, Experts):
            return emit_experts(region)
        if isinstance(region, TorchRegion):
            return emit_torch(region, self.torch.index(region.spelled))
        return _rows(region)

    def _name(self, function: Function) -> str:
        text = f"{function.kind}\n{function.text()}"
        if text not in self.names:
            number = next(self.numbers.setdefault(function.kind, count()))
            self.names[text] = f"{function.kind}_{number}"
        return self.names[text]

    def _definitions(self, functions: Iterable[str]) -> list[str]:
        lines: list[str] = []
        defined: set[str] = set()
        for name, call in zip(functions, self.calls, strict=True):
            if name in defined:
                continue
            defined.add(name)
            function = call.function
            parameters = ", ".join(part for part in ("Team& team", "const Run& run", function.parameters()) if part)
            body = ["  " + line for line in function.lines]
            uses_step = any("step" in line for line in body)
            lines += [
                f"// {call.region.origin or call.region.name}",
                f"void {name}({parameters}) {{",
                *(["  const Step& step = run.step;"] if uses_step else []),
                *body,
                "}",
                "",
            ]
        return lines

    # --- the step

    def _step(self, functions: tuple[str, ...]) -> list[str]:
        tables: list[str] = []
        lines: list[str] = []
        starts = {loop.start: loop for loop in self.loops}
        place = 0
        while place < len(self.calls):
            loop = starts.get(place)
            if loop is None:
                lines += self._plain(place, functions[place])
                place += 1
                continue
            number = len(tables) // 2
            tables += self._tables(number, loop)
            lines += self._looped(number, loop, functions)
            place = loop.stop
        return [*tables, "", "void step_on(Team& team, const Run& run) {", *lines, "}", ""]

    def _plain(self, place: int, name: str) -> list[str]:
        call = self.calls[place]
        comment = f"  // {call.region.origin}" if call.region.origin else ""
        return [f"  {name}({self.arguments.spell(call)});{comment}", f"  end_region(team, run, {place});"]

    def _looped(self, number: int, loop: Loop, functions: tuple[str, ...]) -> list[str]:
        lines = [f"  for (int i = 0; i < {loop.count}; ++i) {{"]
        weight = cache = 0
        for step in range(loop.period):
            call = self.calls[loop.start + step]
            weights = [f"kWeights{number}[i][{weight + place}]" for place in range(len(call.weights))]
            caches = [f"kCaches{number}[i][{cache + place}]" for place in range(len(call.caches))]
            weight, cache = weight + len(weights), cache + len(caches)
            spelled = self.arguments.spell(call, weights, caches)
            lines.append(f"    {functions[loop.start + step]}({spelled});  // {call.region.origin}")
            lines.append(f"    end_region(team, run, {loop.start + step} + i * {loop.period});")
        return [*lines, "  }"]

    def _tables(self, number: int, loop: Loop) -> list[str]:
        weights = [[self.arguments.index[name] for name in names] for names in loop.weights]
        return [
            _table(f"kWeights{number}", weights),
            _table(f"kCaches{number}", [[int(name) for name in names] for names in loop.caches]),
        ]

    # --- the rest of the file

    def _head(self) -> list[str]:
        dtypes = {cache.dtype for cache in self.caches} or {"float32"}
        assert len(dtypes) == 1, "the caches of a model have one dtype"
        headers = [*_HEADERS, *(["moe"] if any(isinstance(c.region, Experts) for c in self.calls) else [])]
        return [
            f"// A transformer step: {len(self.calls)} regions, {len(set(self.names.values()))} kernels,"
            f" {len(self.lowered.weights)} weights.",
            f"// Memory: {self.memory}.",
            *(f'#include "llmc/{name}.h"' for name in headers),
            "",
            "namespace {",
            "",
            "using namespace llmc;",
            f"using Element = {ELEMENTS[dtypes.pop()]};  // of the cache",
            "",
        ]

    def _tail(self) -> list[str]:
        shared, scratch = shared_terms([call.region for call in self.calls if isinstance(call.region, Linear)])
        fixed: list[str] = []
        for call in self.calls:
            region = call.region
            if isinstance(region, Attention):
                sizes = f"{region.heads}, {region.key_heads}, {region.key_size}, {region.value_size}"
                fixed.append(f"attention_shared_bytes<Element, {sizes}>()")
                scratch.append(f"attention_scratch_bytes<Element, {sizes}>()")
            elif isinstance(region, Experts):
                shared.append(f"moe_shared_bytes<{shape_of(region)}>()")
                scratch.append(f"moe_scratch_bytes<{shape_of(region)}>()")
        shapes = ", ".join(f"{{{c.heads}, {c.key_size}, {c.value_size}}}" for c in self.caches) or "{0, 0, 0}"
        names = ", ".join(f'\\"{name}\\"' for name in self.lowered.weights)
        pairs = ", ".join(
            f"[{c.heads * _stored(c.key_size, c.dtype)}, {c.heads * _stored(c.value_size, c.dtype)}]"
            for c in self.caches
        )
        crossovers = ", ".join(f'\\"{n}x{k}:{form}\\"' for n, k, form in self.arguments.crossovers)
        return [
            _largest("kFixed", fixed),
            _largest("kShared", shared),
            _largest("kScratch", scratch),
            f"constexpr int64_t kArena = {self.memory.per_token};",
            f"constexpr CacheShape kShapes[] = {{{shapes}}};",
            f"constexpr int kCrossovers = {max(1, len(self.arguments.crossovers))};",
            "constexpr char kDescription[] =",
            f'    "{{\\"abi\\": 1, \\"vocabulary\\": {self.lowered.vocabulary}, \\"regions\\": {len(self.calls)}, "',
            f'    "\\"caches\\": [{pairs}], "',
            *([f'    "\\"torch\\": \\"{digest(write_calls(self.torch))}\\", "'] if self.torch else []),
            f'    "\\"crossovers\\": [{crossovers}], "',
            f'    "\\"weight_bytes\\": [{", ".join(map(str, self.lowered.weight_bytes))}], "',
            f'    "\\"weights\\": [{names}], ";',
            "",
            "}  // namespace",
            "",
            "LLMC_PROGRAM(step_on, kFixed, kShared, kScratch, kArena, kShapes, kCrossovers, kDescription)",
        ]


def _largest(name: str, terms: list[str]) -> str:
    """A constant: the most of several sizes, in whole cache lines."""
    listed = ", ".join(["size_t(64)", *dict.fromkeys(terms)])
    return f"constexpr size_t {name} = (std::max({{{listed}}}) + 63) / 64 * 64;"


def _table(name: str, rows: list[list[int]]) -> str:
    width = max(1, len(rows[0]))
    text = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in rows)
    return f"constexpr int {name}[][{width}] = {{{text}}};"


def _stored(size: int, dtype: str) -> int:
    """Bytes of a key or value of a token."""
    if dtype == "int8":
        return size + size % 2 + 2  # in pairs, and the scale
    return (size + size % 2) * 2 if dtype == "bfloat16" else size * {"float32": 4, "float16": 2}[dtype]


def _rows(region: RowRegion) -> Function:
    function = Function("rows")
    rows = {"T": "step.T", "R": "step.R", "": "1"}[region.domain]
    function.add(f"const Range range = share(team, {rows});")
    function.add("for (int64_t t = range.begin; t < range.end; ++t) {")
    mark = len(function.lines)
    for op in region.ops:
        emit_row_op(function, op, "t")
    function.lines[mark:] = ["  " + line for line in function.lines[mark:]]
    function.add("}")
    return function


__all__ = ["CpuSource", "emit"]
