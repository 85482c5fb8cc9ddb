"""The explanation of a program: its regions with their kernels, variants, costs and origins.

describe(model, regions, functions, loops, text, memory, target, table=None, notes=None) -> ProgramExplanation
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sympy import Expr
from torch import fx
from torch._ops import OpOverload

from llmc.codegen.cost import Cost, R, T, at, cached_token_bytes, region_cost, seconds
from llmc.codegen.explanation import (
    STEPS,
    KernelRecord,
    LoopRecord,
    ProgramExplanation,
    RegionRecord,
    StepSizes,
    VariantUse,
    Work,
)
from llmc.codegen.groups import ATTENTION
from llmc.codegen.regions import Attention, Experts, HeadPart, Linear, Region, RowOp, RowRegion, TorchRegion
from llmc.codegen.repeats import Loop
from llmc.codegen.select import Choice, Crossovers, M, choose_attention, choose_linear
from llmc.codegen.target import Target
from llmc.codegen.torch_host import computes_by_row
from llmc.ir.model import Model
from llmc.runtime.crossover import experts_key, linear_key

_TORCH_CALL, _TORCH_ROW = 30e-6, 15e-6
"""Seconds of a call of torch, and of each further row that it computes by itself: for one op on a core of a Zen 4."""


def describe(
    model: Model,
    regions: Sequence[Region],
    functions: Sequence[str],
    loops: Iterable[Loop],
    text: str,
    memory: str,
    target: Target,
    table: Crossovers | None = None,
    notes: Mapping[int, str] | None = None,
) -> ProgramExplanation:
    """Explain a generated program.

    model: the packed graph that `regions` compute; functions: the name of each region's function in `text`, the
    generated source; memory: the memory plan, for reading; target: what costs are predicted for; table: crossovers
    that were measured; notes: what else there is to say of regions, by their numbers.
    """
    nodes = {node.name: node for node in model.graph.nodes}
    lines = _lines(text)
    kernels: dict[str, KernelRecord] = {}
    works: dict[str, dict[str, Work]] = {}
    records = []
    for number, (region, function) in enumerate(zip(regions, functions, strict=True)):
        if function not in kernels:
            choices = _choices(region, nodes, target, table)
            uses = tuple(VariantUse(choice.variant, *choice.m_range, choice.others) for choice in choices)
            if isinstance(region, TorchRegion):
                uses = (VariantUse("torch", 1, None, tuple(("native", why) for _, why in region.reasons)),)
            kernels[function] = KernelRecord(
                name=function,
                kind=_kind(region),
                shape=_shape(region),
                fused=tuple(_fused(region)),
                line=lines.get(function, 0),
                tuned_as=_tuned_as(region),
                variants=uses,
            )
            cost = region_cost(nodes_of(region, nodes), model)
            rows = R if _on_logits(region) else T
            works[function] = {
                name: _work(cost, rows, choices, sizes, target, _waiting(region, sizes))
                for name, sizes in STEPS.items()
            }
        records.append(
            RegionRecord(
                region.name,
                function,
                region.origin,
                tuple(region.nodes),
                _on_logits(region),
                works[function],
                (notes or {}).get(number, ""),
            )
        )
    return ProgramExplanation(
        target=_target_text(target),
        memory=memory,
        kernels=tuple(kernels.values()),
        regions=tuple(records),
        loops=tuple(LoopRecord(loop.start, loop.period, loop.count) for loop in loops),
    )


def _target_text(target: Target) -> str:
    peaks = ", ".join(f"{name} {peak.value / 1e9:.0f} G/s" for name, peak in target.peaks.items())
    return f"{target.name}, {target.cores} cores, {target.bandwidth.value / 1e9:.1f} GB/s, {peaks}"


def _lines(text: str) -> dict[str, int]:
    """The line in which each function of the generated source begins."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if (line.startswith("void ") and "(Team" in line) or line.startswith("def "):
            found[line.partition(" ")[2].partition("(")[0]] = number
    return found


def _waiting(region: Region, sizes: StepSizes) -> float:
    """Seconds that go by in calling torch."""
    if not isinstance(region, TorchRegion):
        return 0.0
    rows = {"T": sizes.tokens, "R": sizes.rows, "": 1}[region.domain] if computes_by_row(region.call) else 1
    return _TORCH_CALL + _TORCH_ROW * (rows - 1)


def _work(cost: Cost, rows: Expr, choices: Sequence[Choice], sizes: StepSizes, target: Target, waiting: float) -> Work:
    def value(expr: Expr) -> float:
        return at(expr, tokens=sizes.tokens, rows=sizes.rows, sequences=sizes.sequences, context=sizes.context)

    count = sizes.rows if rows == R else sizes.tokens
    bound = value(seconds(cost, target))
    for choice in choices:
        if VariantUse(choice.variant, *choice.m_range, ()).serves(count):
            bound = max(bound, value(choice.predicted_seconds.subs(M, count)))
    return Work(value(cost.bytes), value(cost.operations), bound + waiting)


def nodes_of(region: Region, nodes: dict[str, fx.Node]) -> list[fx.Node]:
    """What the region computes of the graph; its prologue is part of it."""
    names = list(region.nodes)
    if isinstance(region, Linear) and isinstance(region.source, RowOp):
        names.insert(0, region.source.node)
    found = [nodes[name] for name in dict.fromkeys(names) if name in nodes]
    if isinstance(region, Attention):
        return found
    return [node for node in found if node.target is not ATTENTION]  # which is named where K and V are written


def _on_logits(region: Region) -> bool:
    return not isinstance(region, Attention) and region.domain == "R"


def _choices(region: Region, nodes: dict[str, fx.Node], target: Target, table: Crossovers | None) -> list[Choice]:
    if isinstance(region, Linear):
        return choose_linear(region.name, region.n, region.k, region.format, target, table, region.domain)
    if isinstance(region, Attention):
        return choose_attention(
            region.name,
            region.heads,
            region.key_heads,
            region.key_size,
            region.value_size,
            cached_token_bytes(nodes[region.nodes[0]]),
            target,
        )
    return []


def _tuned_as(region: Region) -> str:
    if isinstance(region, Linear):
        return linear_key(region.n, region.k, region.format)
    if isinstance(region, Experts):
        attrs = region.attrs
        experts, width = int(str(attrs["experts"])), int(str(attrs["width"])) * (2 if attrs["gated"] else 1)
        return experts_key(experts, width, region.source.elements, str(attrs["up_format"]))
    return ""


def _kind(region: Region) -> str:
    names = {Linear: "linear", Attention: "attention", Experts: "experts", RowRegion: "rows", TorchRegion: "torch"}
    return names[type(region)]


def _shape(region: Region) -> str:
    if isinstance(region, Linear):
        return f"{region.n} x {region.k}, {region.format}"
    if isinstance(region, Attention):
        size = (
            f"{region.key_size}" if region.key_size == region.value_size else f"{region.key_size}/{region.value_size}"
        )
        return f"{region.heads} heads on {region.key_heads} of {size}, {region.mask}"
    if isinstance(region, Experts):
        formats = f"{region.attrs.get('up_format', '')}, {region.attrs.get('down_format', '')}"
        return f"{region.attrs.get('experts')} experts of {region.attrs.get('width')}, {formats}"
    return {"T": "each token", "R": "each row of logits", "": "once"}[region.domain]


def _fused(region: Region) -> Iterator[str]:
    """The operations of the region in order, the anchor's own kind in its place."""
    if isinstance(region, RowRegion):
        yield from dict.fromkeys(op.op for op in region.ops)
        return
    if isinstance(region, TorchRegion):
        targets = [node.target for node in region.call.module.graph.nodes]
        yield from dict.fromkeys(str(target).split(".")[1] for target in targets if isinstance(target, OpOverload))
        return
    if isinstance(region, Linear) and isinstance(region.source, RowOp):
        yield region.source.op
    yield _kind(region)
    if not isinstance(region, Linear):
        return
    if region.bias is not None:
        yield "bias"
    if region.gate:
        yield f"{region.gate} gate"
    for step in region.chain:
        yield step.op
    yield from dict.fromkeys(name for part in region.parts for name in _of_part(part))


def _of_part(part: HeadPart) -> Iterator[str]:
    if part.norm is not None:
        yield part.norm.op
    if part.rotation is not None:
        yield "rope"
    if part.role in ("k", "v"):
        yield "cache write"
