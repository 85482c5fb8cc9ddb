"""Which kernel serves a region, for how many rows, and why not the others.

    choose_linear(region, n, k, format, target, table=Crossovers()) -> list[Choice]
    choose_attention(region, heads, key_heads, key_size, value_size, token_bytes, target) -> list[Choice]
    linear_variants(n, k, format, target) -> list[Variant]          seconds of each as an expression of `M`, the rows
    predict(n, k, format, target) -> Crossover
    Crossovers.from_json({"linear": {"960x576:int4": {"flat": 2, "gemm": 17, "source": "measured ..."}}})

A linear is computed row by row (gemv: the weight is read for each), for a few rows at once (flat: read once for them,
unpacked in registers for each handful), or for many (gemm: unpacked once to panels, which all rows reuse). On GPUs
gemv is what ordinary lanes do, for up to three rows of floats, or one row of packed weights in matrix units; flat and
gemm are tiles of matrix units, of one block of rows or of several; and library is a product by cuBLAS, where the
machine that runs it has cuBLAS, with a kernel before it that unpacks the weight and one after it that finishes the
results. The crossovers are the rows at which the expressions of two variants meet, unless a table of measurements says
otherwise. All variants give the same bits on CPUs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import sympy
from sympy import Expr, Integer

from llmc.codegen.cost import B, L, T, number_format, packed_bytes
from llmc.codegen.target import Kind, Target
from llmc.errors import BadOption
from llmc.runtime.crossover import LIBRARY, NEVER, PREDICTED, Crossover, linear_key

M = sympy.Symbol("M", integer=True, positive=True)
"""Rows of a linear, or tokens of a step."""

SCANNED_ROWS = 512
"""A variant that is not the fastest for up to so many rows is never used on CPUs."""
GPU_SCANNED_ROWS = 4096
"""The same on GPUs."""
FLOATS = ("f32", "f16", "bf16")
"""Formats whose weights are multiplied as they are stored."""

EQUAL = 1e-6
"""Part of a time by which two may differ and be the same."""

UNPACK = {
    "int4": 2.0,
    "int4g64": 2.0,
    "int4g128": 2.0,
    "int4m": 1.0,
    "int6": 3.0,
    "int6g16": 3.0,
    "int8": 0.5,
    "fp8": 2.0,
    "f16": 1.0,
    "bf16": 0.0,
    "f32": 0.0,
}
"""Operations of the format's own kind that unpacking one weight is worth (estimated)."""


@dataclass(frozen=True)
class _Shape:
    """What distinguishes a variant's cost; all estimated from its instructions."""

    rows_a_read: int
    """Rows for which the weight is read once from memory."""
    rows_an_unpacking: int
    """Rows for which it is unpacked once."""
    padding: int
    """Rows are filled up to a multiple of this."""
    efficiency: float
    """Share of the peak that the inner loop reaches."""
    panel: float = 0.0
    """Operations a weight for writing panels and reading them back, once for each unpacking."""
    scalar: bool = False
    """Whether it multiplies in fp32 lanes and not in matrix units."""
    most: int = NEVER
    """Rows that it takes at most."""


_SHAPES: Mapping[Kind, Mapping[str, _Shape]] = {
    "cpu": {"gemv": _Shape(1, 1, 1, 0.9), "flat": _Shape(8, 4, 1, 0.8), "gemm": _Shape(510, 510, 1, 0.85, panel=6.0)},
    "cuda": {
        "gemv": _Shape(3, 3, 1, 0.5, scalar=True, most=3),
        "flat": _Shape(64, 64, 8, 0.4, most=64),
        "gemm": _Shape(4096, 64, 64, 0.4),
    },
}
_SHAPES = {
    **_SHAPES,
    "hip": _SHAPES["cuda"],
    "cuda": {**_SHAPES["cuda"], LIBRARY: _Shape(NEVER, NEVER, 64, 0.7)},
}

_ONE_ROW = _Shape(1, 1, 8, 0.4, most=1)
"""gemv of packed weights on GPUs: they are unpacked for matrix units, of which a row fills one column of eight."""


def _shapes(format: str, target: Target) -> Mapping[str, _Shape]:
    packed = target.kind != "cpu" and format not in FLOATS
    return {**_SHAPES[target.kind], "gemv": _ONE_ROW} if packed else _SHAPES[target.kind]


@dataclass(frozen=True)
class Variant:
    """One way to compute a region."""

    name: str
    bytes: Expr
    flops: Expr
    seconds: Expr
    illegal: str = ""
    """Why it cannot be used; empty if it can."""


@dataclass(frozen=True)
class Choice:
    """The kernel of a region for a range of rows."""

    region: str
    variant: str
    m_range: tuple[int, int | None]
    """First and last number of rows; None for no end."""
    bytes: Expr
    """Memory traffic as an expression of `M` (linears), or of the sizes of a step."""
    flops: Expr
    predicted_seconds: Expr
    others: tuple[tuple[str, str], ...]
    """The variants that were not chosen, each with the reason."""


@dataclass(frozen=True)
class Crossovers:
    """What is known of linears, by "NxK:format"; what is not known is `default`, or else predicted."""

    linear: Mapping[str, Crossover] = field(default_factory=dict)
    default: Crossover | None = None

    def get(self, n: int, k: int, format: str, target: Target) -> Crossover:
        """The crossover of a linear."""
        return self.linear.get(linear_key(n, k, format)) or self.default or predict(n, k, format, target)

    def to_json(self) -> dict[str, object]:
        """The same as plain values; the default aside."""
        return {"linear": {key: vars(self.linear[key]).copy() for key in sorted(self.linear)}}

    @staticmethod
    def from_json(document: Mapping[str, object], source: str = "measured") -> "Crossovers":
        """Read a table, in which a crossover may also be a list [flat, gemm]; `source` is that of what names none.

        Raises BadOption if it is not a table, or a crossover is out of order.
        """
        entries = document.get("linear", {})
        if not isinstance(entries, Mapping):
            raise BadOption("tuning table: `linear` is not a mapping")
        return Crossovers({str(key): _crossover(str(key), entry, source) for key, entry in entries.items()})


def _crossover(key: str, entry: object, source: str) -> Crossover:
    found: Mapping[str, object] = entry if isinstance(entry, Mapping) else {}
    if isinstance(entry, list) and len(entry) == 2:
        found = {"flat": entry[0], "gemm": entry[1]}
    flat, gemm, library = found.get("flat"), found.get("gemm"), found.get("library", NEVER)
    if type(flat) is int and type(gemm) is int and type(library) is int:
        crossover = Crossover(flat, gemm, str(found.get("source", source)), library)
        if crossover.in_order:
            return crossover
    raise BadOption(
        f"tuning table: {key:.60} has flat {flat!r:.20}, gemm {gemm!r:.20} and library {library!r:.20};"
        " expected 1 <= flat <= gemm <= library"
    )


def linear_variants(n: int, k: int, format: str, target: Target) -> list[Variant]:
    """gemv, flat, gemm, and library for GPUs that have one, for M rows by a weight [n, k], legal or not."""
    weight = packed_bytes(n, k, format)
    kind = number_format(format)
    if target.kind != "cpu":  # matrix units take 16-bit floats, which smaller weights become
        kind = "f32" if format == "f32" else "bf16"
    found = []
    for name, shape in _shapes(format, target).items():
        peak = target.peaks["f32" if shape.scalar else kind].value * shape.efficiency
        reads = _times(shape.rows_a_read) * weight
        padded = M if shape.padding == 1 else sympy.ceiling(M / Integer(shape.padding)) * shape.padding
        work = 2 * padded * n * k
        unpacking = _times(shape.rows_an_unpacking) * n * k * (UNPACK[format] + shape.panel)
        seconds = sympy.Max(reads / target.bandwidth.value, (work + unpacking) / peak) + target.overhead.value
        if name == LIBRARY:
            reads, seconds = _around_product(n, k, format, work / peak, target)
        found.append(Variant(name, reads + M * (n + k) * 4, 2 * M * n * k, seconds, _illegal(name, format, target)))
    return found


def _around_product(n: int, k: int, format: str, multiplying: Expr, target: Target) -> tuple[Expr, Expr]:
    """Bytes and seconds of a library's product and of the kernels around it, which pass everything through memory."""
    read = Integer(n * k * (4 if format == "f32" else 2))
    kernels, unpacked = (2, Integer(0)) if format in FLOATS else (3, packed_bytes(n, k, format) + read)
    finished = M * n * 8  # sums are written and read, beside the results
    around = (unpacked + finished) / target.bandwidth.value + kernels * target.overhead.value
    return read + unpacked + finished, sympy.Max(read / target.bandwidth.value, multiplying) + around


def why_no_library(format: str, domain: str, target: Target) -> str:
    """Why a linear is not computed by cuBLAS even where it is found; "" if it may be. domain: of its rows."""
    if target.kind != "cuda":
        return f"there is no cuBLAS for {target.name}"
    if format not in FLOATS and domain == "R":
        return "a table for logits is too large to be unpacked whole"
    return ""


def _times(rows: int) -> Expr:
    return M if rows == 1 else sympy.ceiling(M / Integer(rows))


def _illegal(variant: str, format: str, target: Target) -> str:
    if variant == "gemm" and target.kind == "cpu" and UNPACK[format] == 0:
        return f"weights of {format} are multiplied as they are stored: there is nothing to unpack into panels"
    if variant == "gemm" and target.kind == "cpu" and number_format(format) != "int8":
        return f"there are panels of integers only, not of {format}"
    return ""


def predict(n: int, k: int, format: str, target: Target) -> Crossover:
    """Where the variants' expressions meet."""
    scanned = SCANNED_ROWS if target.kind == "cpu" else GPU_SCANNED_ROWS
    shapes = _shapes(format, target)
    times = {
        variant.name: _table(variant.seconds, shapes[variant.name].most, scanned)
        for variant in linear_variants(n, k, format, target)
        if not variant.illegal
    }
    flat = _from(times.get("flat"), times["gemv"], 2) if "gemv" in times else 1
    gemm = _from(times.get("gemm"), times["flat"] if flat < NEVER else times["gemv"], max(2, min(flat, SCANNED_ROWS)))
    library = _from(times.get(LIBRARY), times.get("gemm", ()), max(2, gemm)) if gemm < NEVER else NEVER
    return Crossover(min(flat, gemm), gemm, library=library)


def _table(seconds: Expr, most: int, scanned: int) -> list[float]:
    at: Callable[[int], float] = sympy.lambdify(M, seconds, "math")
    return [math.inf, *(float(at(rows)) if rows <= most else math.inf for rows in range(1, scanned + 1))]


def _from(times: Sequence[float] | None, others: Sequence[float], first: int) -> int:
    """The first number of rows, from `first` on, from which eight in a row are faster; NEVER if there is none."""
    if times is None:
        return NEVER
    faster = [time < other * (1 - EQUAL) for time, other in zip(times, others, strict=True)]
    for rows in range(first, len(times) - 8):
        if all(faster[rows : rows + 8]):
            return rows
    return NEVER


def choose_linear(
    region: str,
    n: int,
    k: int,
    format: str,
    target: Target,
    table: Crossovers | None = None,
    domain: str = "T",
) -> list[Choice]:
    """The variants that serve a linear [n, k], by rows, each with the reasons against the others.

    domain: of the rows. A library serves where it is found, and gemm in its place elsewhere.
    """
    crossover = (table or Crossovers()).get(n, k, format, target)
    variants = [
        replace(variant, illegal=why_no_library(format, domain, target)) if variant.name == LIBRARY else variant
        for variant in linear_variants(n, k, format, target)
    ]
    gemm = NEVER if variants[2].illegal else crossover.gemm
    starts = [1, min(crossover.flat, gemm), gemm]
    if len(variants) > len(starts):
        starts.append(NEVER if variants[3].illegal else crossover.library)
    choices = []
    shapes = _shapes(format, target)
    for place, variant in enumerate(variants):
        first, last = starts[place], (*starts, NEVER)[place + 1] - 1
        if first > last:
            continue
        others = tuple(
            (other.name, other.illegal or _slower(variant, other, first, crossover, starts[number], shapes))
            for number, other in enumerate(variants)
            if other is not variant
        )
        rows = (first, None if last == NEVER - 1 else last)
        choices.append(Choice(region, variant.name, rows, variant.bytes, variant.flops, variant.seconds, others))
    return choices


def _slower(
    variant: Variant, other: Variant, rows: int, crossover: Crossover, start: int, shapes: Mapping[str, _Shape]
) -> str:
    most = shapes[other.name].most
    if rows > most:
        return f"takes at most {most} row{'s' if most > 1 else ''}"
    if crossover.source != PREDICTED:
        used = "not used" if start >= NEVER else f"used from {start} rows on"
        return f"{used} ({crossover.source})"
    ratio = float(other.seconds.subs(M, rows) / variant.seconds.subs(M, rows))
    many = "1 row" if rows == 1 else f"{rows} rows"
    reason = f"predicted {ratio:.2f} times as long for {many}" if ratio > 1.005 else f"predicted no faster for {many}"
    return f"{reason}; used where cuBLAS is not found" if (variant.name, other.name) == (LIBRARY, "gemm") else reason


def choose_attention(
    region: str,
    heads: int,
    key_heads: int,
    key_size: int,
    value_size: int,
    token_bytes: int,
    target: Target,
) -> list[Choice]:
    """Attention over the cache, by the tokens of a step.

    split: the keys of a tile of queries are shared out over the cores, and the parts are merged by their log-sum-exp.
    flash: each tile of queries is one core's, with a running maximum. token_bytes: of K and V in the cache.
    """
    group = heads // key_heads
    tokens_a_tile = max(1, 16 // group)
    enough = 4 * target.cores
    first = max(2, (-(-enough // key_heads) - 1) * tokens_a_tile + 1)
    flops = T * L * heads * 2 * (key_size + value_size)
    read = (B * L + T) * token_bytes
    fast = target.peaks["f32" if target.kind == "cpu" else "bf16"].value
    time = sympy.Max(read / target.bandwidth.value, flops / fast) + target.overhead.value
    merge = time + target.overhead.value
    few = f"fewer than {enough} tiles of queries ({key_heads} key heads) for {target.cores} cores: some would idle"
    many = f"from {first} tokens on there are enough tiles of queries for {target.cores} cores: merging would only cost"
    return [
        Choice(region, "split", (1, first - 1), read, flops, merge, (("flash", few),)),
        Choice(region, "flash", (first, None), read, flops, time, (("split", many),)),
    ]
