"""What a compiled program consists of, as the artifact keeps it beside the program and `llmc explain` prints it.

    ProgramExplanation.to_json() -> dict; ProgramExplanation.from_json(bytes) raises ArtifactRejected
    explanation.concerning("qkv") -> the part about a region, kernel or module
    explanation.with_measured("decode", [seconds of each region]) -> the same with measurements

Every region of the program, in the order in which they run, names its kernel; regions of one kernel run the same code.
Needs no torch. How it is made of a graph: `llmc.codegen.describe`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from llmc.runtime.checked_json import Field, parse
from llmc.runtime.crossover import PREDICTED, VARIANTS, Crossover

VERSION = 1
"""Version of the JSON; rises when a field changes or goes."""

NEVER_FROM = 1 << 30
"""A variant that a table uses from so many rows on is not used."""

_MOST = 1_000_000
_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class StepSizes:
    """A step whose cost is predicted."""

    tokens: int
    rows: int
    """Rows of logits."""
    sequences: int
    context: int
    """Keys that a token attends to."""


STEPS: Mapping[str, StepSizes] = {"decode": StepSizes(1, 1, 1, 512), "prefill": StepSizes(512, 1, 1, 256)}
"""The steps that every program is explained for: one token after 512 others, and a prompt of 512 tokens."""


@dataclass(frozen=True)
class Work:
    """What a region does in one step."""

    bytes: float
    """Moved to or from memory, were nothing in a cache."""
    flops: float
    predicted: float
    """Seconds."""
    measured: float | None = None
    """Seconds; None if not measured."""


@dataclass(frozen=True)
class VariantUse:
    """A variant of a kernel and the numbers of rows that it serves."""

    variant: str
    first: int
    last: int | None
    """None for no end."""
    others: tuple[tuple[str, str], ...]
    """The variants that were not chosen, each with the reason."""

    @property
    def rows(self) -> str:
        """The range as text."""
        if self.last == self.first:
            return f"{self.first} row{'s' if self.first > 1 else ''}"
        return f"{self.first} rows and more" if self.last is None else f"{self.first} to {self.last} rows"

    def serves(self, rows: int) -> bool:
        """Whether it is the one for so many rows."""
        return self.first <= rows and (self.last is None or rows <= self.last)


@dataclass(frozen=True)
class KernelRecord:
    """A function of the generated source."""

    name: str
    kind: str
    """linear, attention, experts, rows or torch."""
    shape: str
    """Sizes and formats, for reading."""
    fused: tuple[str, ...]
    """The operations done with the main one, in order."""
    line: int
    """Where it begins in the generated source; 0 if unknown."""
    tuned_as: str
    """The name of its crossovers in tuning tables, such as "960x576:int4"; empty if it has none."""
    variants: tuple[VariantUse, ...]

    def with_crossovers(self, crossover: Crossover) -> "KernelRecord":
        """The same with its variants used from other numbers of rows on, if they are listed."""
        if not self.variants:
            return self
        used = {use.variant for use in self.variants}
        unused = {name: reason for use in self.variants for name, reason in use.others if name not in used}
        known = {*used, *unused}
        reasons = {name: reason for name, reason in unused.items() if not reason.startswith(PREDICTED)}
        starts = {name: start for name, start in zip(VARIANTS, crossover.starts, strict=True) if name in known}
        reasons |= {name: f"not used ({crossover.source})" for name, start in starts.items() if start >= NEVER_FROM}
        legal = [name for name in starts if name not in reasons]
        uses = []
        for name, following in zip(legal, [*legal[1:], ""], strict=True):
            last = starts[following] - 1 if following else None
            if last is None or starts[name] <= last:
                others = tuple(
                    (other, reasons.get(other, f"used from {starts[other]} rows on ({crossover.source})"))
                    for other in starts
                    if other != name
                )
                uses.append(VariantUse(name, starts[name], last, others))
        return replace(self, variants=tuple(uses))


@dataclass(frozen=True)
class RegionRecord:
    """One step of the program, between two barriers."""

    name: str
    kernel: str
    origin: str
    """Module path and source line in the model."""
    nodes: tuple[str, ...]
    """What of the graph it computes."""
    on_logits: bool
    """Whether it has a row for each row of logits, not for each token."""
    work: Mapping[str, Work]
    """By the names of the steps."""
    note: str = ""
    """What else there is to say of it, such as what its softmax needs."""

    @property
    def place(self) -> str:
        """The module path with `*` for the numbers of layers."""
        return _LAYER.sub("*", self.origin.partition(" at ")[0]) or "unknown origin"


@dataclass(frozen=True)
class LoopRecord:
    """Regions that are one loop in the source."""

    start: int
    period: int
    count: int


@dataclass(frozen=True)
class ProgramExplanation:
    """A whole program."""

    target: str
    """The machine that times are predicted for."""
    memory: str
    kernels: tuple[KernelRecord, ...]
    regions: tuple[RegionRecord, ...]
    loops: tuple[LoopRecord, ...] = ()
    steps: Mapping[str, StepSizes] = field(default_factory=lambda: dict(STEPS))

    def kernel(self, name: str) -> KernelRecord:
        """The kernel called `name`, which exists."""
        return next(kernel for kernel in self.kernels if kernel.name == name)

    def concerning(self, op: str) -> "ProgramExplanation":
        """Only the regions that `op` names: their name, kernel, kind of kernel, module, a node in them, or an op that
        torch computes.

        Loops are left out: they number all regions.
        """
        kinds = {
            kernel.name: (kernel.kind, *(kernel.fused if kernel.kind == "torch" else ())) for kernel in self.kernels
        }
        chosen = tuple(
            region
            for region in self.regions
            if op in (region.name, region.kernel, *kinds[region.kernel], *region.nodes) or _within(op, region.origin)
        )
        used = {region.kernel for region in chosen}
        kernels = tuple(kernel for kernel in self.kernels if kernel.name in used)
        return replace(self, kernels=kernels, regions=chosen, loops=())

    def with_crossovers(self, table: Mapping[str, Crossover]) -> "ProgramExplanation":
        """The same with the variants that a tuning table chooses; predictions stay as they are."""
        kernels = tuple(
            kernel.with_crossovers(table[kernel.tuned_as]) if kernel.tuned_as in table else kernel
            for kernel in self.kernels
        )
        return replace(self, kernels=kernels)

    def with_measured(self, step: str, seconds: Sequence[float]) -> "ProgramExplanation":
        """The same with what each region took in a step of those sizes. Raises ValueError if their number differs."""
        if len(seconds) != len(self.regions):
            raise ValueError(f"{len(seconds)} measurements of {len(self.regions)} regions")
        regions = tuple(
            replace(region, work={**region.work, step: replace(region.work[step], measured=taken)})
            for region, taken in zip(self.regions, seconds, strict=True)
        )
        return replace(self, regions=regions)

    def to_json(self) -> dict[str, object]:
        """The same as plain values."""
        return {"version": VERSION, **asdict(self)}

    @staticmethod
    def from_json(content: bytes) -> "ProgramExplanation":
        """Read what `to_json` wrote. Raises ArtifactRejected."""
        root = parse(content, "explanation").members(
            ("version", "target", "memory", "kernels", "regions", "loops", "steps")
        )
        root["version"].integer(VERSION, VERSION)
        kernels = tuple(_kernel(item) for item in root["kernels"].items(_MOST))
        steps = {name: _step(item) for name, item in root["steps"].entries(100)}
        regions = tuple(_region(item, steps) for item in root["regions"].items(_MOST))
        names = {kernel.name for kernel in kernels}
        for place, region in enumerate(regions):
            if region.kernel not in names:
                root["regions"].items(_MOST)[place].reject("a region of one of the kernels")
        return ProgramExplanation(
            root["target"].text(),
            root["memory"].text(),
            kernels,
            regions,
            tuple(_loop(item) for item in root["loops"].items(_MOST)),
            steps,
        )


def _within(op: str, origin: str) -> bool:
    """Whether `op` is the module of `origin`, one around it, or a part of its path."""
    module = origin.partition(" at ")[0]
    return bool(op) and (module == op or module.startswith(f"{op}.") or op in re.split(r"[.{},]", module))


def _kernel(item: Field) -> KernelRecord:
    found = item.members(("name", "kind", "shape", "fused", "line", "tuned_as", "variants"))
    return KernelRecord(
        found["name"].text(),
        found["kind"].text(),
        found["shape"].text(),
        tuple(part.text() for part in found["fused"].items(_MOST)),
        found["line"].integer(0, _MOST),
        found["tuned_as"].text(),
        tuple(_variant(part) for part in found["variants"].items(100)),
    )


def _variant(item: Field) -> VariantUse:
    found = item.members(("variant", "first", "last", "others"))
    others = [[part.text() for part in pair.items(2)] for pair in found["others"].items(100)]
    if any(len(pair) != 2 for pair in others):
        found["others"].reject("pairs of a variant and a reason")
    last = found["last"].optional(lambda part: part.integer(1, 1 << 40))
    return VariantUse(
        found["variant"].text(), found["first"].integer(1, 1 << 40), last, tuple((name, why) for name, why in others)
    )


def _region(item: Field, steps: Mapping[str, StepSizes]) -> RegionRecord:
    found = item.members(("name", "kernel", "origin", "nodes", "on_logits", "work"), ("note",))
    work = {name: _work(part) for name, part in found["work"].members(tuple(steps)).items()}
    nodes = tuple(part.text() for part in found["nodes"].items(_MOST))
    if not isinstance(found["on_logits"].value, bool):
        found["on_logits"].reject("true or false")
    note = found["note"].text() if "note" in found else ""
    return RegionRecord(
        found["name"].text(),
        found["kernel"].text(),
        found["origin"].text(),
        nodes,
        found["on_logits"].value,
        work,
        note,
    )


def _work(item: Field) -> Work:
    found = item.members(("bytes", "flops", "predicted"), ("measured",))
    measured = found["measured"].optional(Field.number) if "measured" in found else None
    return Work(found["bytes"].number(), found["flops"].number(), found["predicted"].number(), measured)


def _loop(item: Field) -> LoopRecord:
    found = item.members(("start", "period", "count"))
    start, period, count = (found[name].integer(0, _MOST) for name in ("start", "period", "count"))
    return LoopRecord(start, period, count)


def _step(item: Field) -> StepSizes:
    found = item.members(("tokens", "rows", "sequences", "context"))
    tokens, rows, sequences, context = (
        found[n].integer(0, 1 << 40) for n in ("tokens", "rows", "sequences", "context")
    )
    return StepSizes(tokens, rows, sequences, context)
