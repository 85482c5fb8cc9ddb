"""A whole program as one C++ translation unit."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from llmc.codegen.cpp.emit_attention import emit_attention
from llmc.codegen.cpp.emit_experts import emit_experts
from llmc.codegen.cpp.emit_linear import FORMATS, emit_linear, shared_terms
from llmc.codegen.cpp.emit_rows import emit_row_op
from llmc.codegen.cpp.function import TYPES, Function
from llmc.codegen.layout import Buffer
from llmc.codegen.lower import Lowered, lower
from llmc.codegen.plan_memory import Plan, plan
from llmc.codegen.plan_memory import Buffer as Planned
from llmc.codegen.regions import Attention, Experts, Linear, Region, RowRegion
from llmc.codegen.walk import touched
from llmc.ir.model import Model
from llmc.runtime.program import CacheSpec

SIZES = {"f32": 4, "f16": 2, "bf16": 2, "i64": 8, "u8": 1}
ELEMENTS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_HEADERS = (
    "activation", "attention", "cache", "elementwise", "engine", "gather", "linear", "moe", "norm", "rope", "rows", "topk",
)  # fmt: skip


@dataclass(frozen=True)
class CpuSource:
    """A generated program."""

    text: str
    """The translation unit; it includes headers of `llmc/`."""
    weights: tuple[str, ...]
    """Names of the weights in the order in which the program takes them."""
    description: dict[str, object]
    """What the runtime must know; the program also says it of itself."""
    regions: tuple[Region, ...]


def emit(model: Model, caches: Iterable[CacheSpec]) -> CpuSource:
    """The program of a packed graph. Raises `llmc.codegen.lower.Unlowered` for what has no native form."""
    return _Emitter(lower(model), tuple(caches)).run()


class _Emitter:
    def __init__(self, lowered: Lowered, caches: tuple[CacheSpec, ...]) -> None:
        self.lowered = lowered
        self.caches = caches
        self.index = {name: place for place, name in enumerate(lowered.weights)}
        self.functions: dict[str, str] = {}
        self.definitions: list[str] = []
        self.crossovers: dict[tuple[str, str, str], int] = {}
        self.memory = _plan(lowered.regions)
        self.numbers: dict[str, count[int]] = {}

    def run(self) -> CpuSource:
        calls = [line for number, region in enumerate(self.lowered.regions) for line in self._call(number, region)]
        text = "\n".join([*self._head(), *self.definitions, *self._step(calls), *self._tail()]) + "\n"
        description: dict[str, object] = {
            "weights": list(self.lowered.weights),
            "regions": len(self.lowered.regions),
            "functions": len(self.functions),
        }
        return CpuSource(text, tuple(self.lowered.weights), description, tuple(self.lowered.regions))

    # --- functions and their calls

    def _call(self, number: int, region: Region) -> list[str]:
        function = _function(region)
        name = self.functions.get(function.text())
        if name is None:
            place = next(self.numbers.setdefault(function.kind, count()))
            name = self.functions[function.text()] = f"{function.kind}_{place}"
            self.definitions += self._define(name, function, region)
        passed = [self._pointer(buffer) for buffer in function.pointers]
        passed += [self._passed(text) for _, text in function.extra]
        arguments = ", ".join(["team", "run", *passed])
        return [f"  {name}({arguments});  // {region.origin}".rstrip(" /"), f"  end_region(team, run, {number});"]

    def _define(self, name: str, function: Function, region: Region) -> list[str]:
        parameters = ", ".join(part for part in ("Team& team", "const Run& run", function.parameters()) if part)
        body = ["  " + line for line in function.lines]
        uses = any("step" in line for line in body)
        return [
            f"// First for {region.origin or region.name}.",
            f"void {name}({parameters}) {{",
            *(["  const Step& step = run.step;"] if uses else []),
            *body,
            "}",
            "",
        ]

    def _pointer(self, buffer: Buffer) -> str:
        kind = TYPES[buffer.dtype]
        if buffer.place == "weight":
            return f"run.weight<{kind}>({self.index[buffer.name]})"
        if buffer.place == "logits":
            return "run.logits"
        if buffer.place == "step":
            return f"run.step.{buffer.name}"
        return f"run.buffer<{kind}>({self.memory.offsets[buffer.key]})"

    def _passed(self, text: str) -> str:
        kind, _, rest = text.partition("(")
        arguments = [part.strip() for part in rest.rstrip(")").split(",")]
        if kind == "weights":
            pointers = [f"run.weights[{self.index[name]}]" for name in arguments if name]
            return f"Weights{{{', '.join([*pointers, 'nullptr', 'nullptr'][:3])}}}"
        if kind == "crossover":
            n, k, form = arguments
            return f"run.crossovers[{self.crossovers.setdefault((n, k, form), len(self.crossovers))}]"
        if kind == "cache":
            return f"run.cache<Element>({arguments[0]})"
        return "run.shared()" if kind == "shared" else text

    # --- the rest of the file

    def _head(self) -> list[str]:
        dtypes = {cache.dtype for cache in self.caches} or {"float32"}
        assert len(dtypes) == 1, "the caches of a model have one dtype"
        return [
            f"// A transformer step: {len(self.lowered.regions)} regions, {len(self.functions)} kernels,"
            f" {len(self.lowered.weights)} weights.",
            *(f'#include "llmc/{name}.h"' for name in _HEADERS),
            "",
            "namespace {",
            "",
            "using namespace llmc;",
            f"using Element = {ELEMENTS[dtypes.pop()]};  // of the cache",
            "",
        ]

    def _step(self, calls: list[str]) -> list[str]:
        return ["void step_on(Team& team, const Run& run) {", *calls, "}", ""]

    def _tail(self) -> list[str]:
        linears = [region for region in self.lowered.regions if isinstance(region, Linear)]
        shared, scratch = shared_terms(linears)
        shapes = ", ".join(f"{{{c.heads}, {c.key_size}, {c.value_size}}}" for c in self.caches) or "{0, 0, 0}"
        experts = [region for region in self.lowered.regions if isinstance(region, Experts)]
        attentions = sorted({
            (r.heads, r.key_heads, r.key_size, r.value_size) for r in self.lowered.regions if isinstance(r, Attention)
        })  # fmt: skip
        for heads, key_heads, key_size, value_size in attentions:
            shared.append(f"attention_shared_bytes<Element, {heads}, {key_heads}, {key_size}, {value_size}>()")
            scratch.append(f"attention_scratch_bytes<Element, {heads}, {key_heads}, {key_size}, {value_size}>()")
        assert not experts or scratch, "a model with experts has linears"
        names = ", ".join(f'\\"{name}\\"' for name in self.lowered.weights)
        pairs = ", ".join(
            f"[{c.heads * _stored(c.key_size, c.dtype)}, {c.heads * _stored(c.value_size, c.dtype)}]"
            for c in self.caches
        )
        return [
            f"constexpr size_t kShared = (std::max({{size_t(64), {', '.join(shared)}}}) + 63) / 64 * 64;",
            f"constexpr size_t kScratch = std::max({{size_t(64), {', '.join(scratch)}}});",
            f"constexpr int64_t kArena = {self.memory.per_token};",
            f"constexpr CacheShape kShapes[] = {{{shapes}}};",
            f"constexpr int kCrossovers = {max(1, len(self.crossovers))};",
            "constexpr char kDescription[] =",
            f'    "{{\\"abi\\": 1, \\"vocabulary\\": {self.lowered.vocabulary}, \\"caches\\": [{pairs}], "',
            f'    "\\"crossovers\\": [{", ".join(_quoted(key) for key in self.crossovers)}], "',
            f'    "\\"weights\\": [{names}], ";',
            "",
            "}  // namespace",
            "",
            "LLMC_PROGRAM(step_on, kShared, kScratch, kArena, kShapes, kCrossovers, kDescription)",
        ]


def _quoted(key: tuple[str, str, str]) -> str:
    return f'\\"{key[0]}x{key[1]}:{key[2]}\\"'


def _stored(size: int, dtype: str) -> int:
    return (size + size % 2) * 2 if dtype == "bfloat16" else size * {"float32": 4, "float16": 2}[dtype]


def _function(region: Region) -> Function:
    if isinstance(region, Linear):
        return emit_linear(region)
    if isinstance(region, Attention):
        return emit_attention(region)
    if isinstance(region, Experts):
        return emit_experts(region)
    return _rows(region)


def _rows(region: RowRegion) -> Function:
    function = Function("rows")
    count_text = {"T": "step.T", "R": "step.R", "": "1"}[region.domain]
    function.add(f"const Range range = share(team, {count_text});")
    function.add("for (int64_t t = range.begin; t < range.end; ++t) {")
    mark = len(function.lines)
    for op in region.ops:
        emit_row_op(function, op, "t")
    function.lines[mark:] = ["  " + line for line in function.lines[mark:]]
    function.add("}")
    return function


def _plan(regions: list[Region]) -> Plan:
    """Places in the arena, in bytes for each row of capacity."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for place, region in enumerate(regions):
        for buffer in touched(region):
            first.setdefault(buffer, place)
            last[buffer] = place
    return plan([
        Planned(buffer.key, first[buffer], last[buffer], buffer.width * SIZES[buffer.dtype]) for buffer in first
    ])  # fmt: skip


__all__ = ["FORMATS", "CpuSource", "emit"]
