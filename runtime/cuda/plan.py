"""The launch plan of a GPU program: which kernels run in a step, over which grids, on which memory.

A step has sizes T (tokens), B (sequences), R (rows of logits), M (blocks in a row of the block table), and F, which is
1 where tokens are ruled out before one is drawn, by top-k, top-p or min-p, and else 0. A plan is made for every step
that the artifact serves: launches name the sizes, and those that do not apply are passed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmc.runtime.crossover import Crossover
from llmc.runtime.shares import Shares

Symbol = Literal["", "T", "B", "R", "F"]


@dataclass(frozen=True)
class Extent:
    """One side of a grid: `times * ceil(symbol / per) + plus + more`; `symbol` is 1 where it is empty, `plus` 0."""

    symbol: Symbol = ""
    per: int = 1
    times: int = 1
    plus: Symbol = ""
    more: int = 0

    def at(self, sizes: Mapping[str, int]) -> int:
        """The side in a step of these sizes."""
        size = sizes[self.symbol] if self.symbol else 1
        return self.times * -(-size // self.per) + (sizes[self.plus] if self.plus else 0) + self.more


ONE = Extent()


@dataclass(frozen=True)
class When:
    """The steps in which a launch takes place."""

    symbol: Symbol = ""
    """The size that decides; "" for every step."""
    least: int = 1
    most: int | None = None
    """Below `least` there is no such step."""
    decode: bool | None = None
    """True: only where each sequence has one token (T = B); False: only elsewhere."""

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether the launch takes place in a step of these sizes."""
        if self.decode is not None and self.decode != (sizes["T"] == sizes["B"]):
            return False
        size = sizes[self.symbol] if self.symbol else self.least
        return self.least <= size and (self.most is None or size <= self.most)


ALWAYS = When()
STEP_ARRAYS = ("tokens", "positions", "slots", "starts", "lengths", "blocks", "rows")
"""Arrays of every step (see `llmc.runtime.program.Batch`)."""
CHOICE_ARRAYS = (
    "temperatures", "top_ks", "top_ps", "min_ps", "penalties", "seen", "logprobs", "uniforms", "ends", "remaining",
    "made", "chosen", "ranked", "totals", "horizon",
)  # fmt: skip
"""Arrays of steps whose tokens are chosen on the device: how, from which numbers, until when, and what was chosen (see
`llmc.runtime.cuda.choices`)."""
ArgumentKind = Literal["arena", "weight", "step", "size", "shares", "cache", "workspace", "logits", "source", "target"]


@dataclass(frozen=True)
class Argument:
    """What one parameter of a kernel is given."""

    kind: ArgumentKind
    name: str = ""
    """weight: its name. step: one of `STEP_ARRAYS`, or of `CHOICE_ARRAYS` where tokens are chosen (int64). size: T, B,
    R or M (int32). shares: an attention's name in `Plan.shares`, for over how many programs its keys are divided
    (int32); by as many as those are more than the rule says, the grid of the launch has more along y. cache: one of
    `cache_arrays`. workspace: its name. source, target: of a weight that is rearranged.
    """
    number: int = 0
    """arena: bytes a token of all buffers before this one. cache: the layer."""


@dataclass(frozen=True)
class Kernel:
    """One compiled function."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    """Names and Triton types ("*fp32", "*bf16", "*u8", "i32") of the parameters in order; constants are in the text."""
    warps: int
    stages: int
    pdl: bool
    """Launched before its predecessor has ended: it waits for it by itself."""


@dataclass(frozen=True)
class Candidate:
    """That a launch belongs to one variant of a linear: it takes place where that variant is chosen."""

    linear: str
    """Such as "3072x2048:bf16": the name of its crossovers."""
    variant: str
    """One of `llmc.runtime.crossover.VARIANTS`."""
    least: int
    """Rows from which the launch can take place."""
    most: int | None
    """Rows up to which it can; None for no end."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    kernel: str
    grid: tuple[Extent, Extent, Extent]
    arguments: tuple[Argument, ...]
    when: When
    region: int
    """The region that it belongs to, by number."""
    candidate: Candidate | None = None
    """What `when` was narrowed from; None where there is nothing to choose."""


Number = Literal["f32", "f16", "bf16"]
NUMBER_BYTES: Mapping[Number, int] = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of the numbers that products multiply."""


@dataclass(frozen=True)
class Product:
    """A product of matrices that a library computes: sums [rows, n] = inputs [rows, k] times the transpose of a weight
    [n, k], whose rows follow one another. It takes its place among the launches."""

    weight: Argument
    inputs: Argument
    sums: Argument
    """fp32."""
    dtype: Number
    """Of weight and inputs."""
    n: int
    k: int
    stride: int
    """Numbers from one row of sums to the next."""
    rows: Symbol
    when: When
    region: int
    """The region that it belongs to, by number."""
    candidate: Candidate | None = None
    """What `when` was narrowed from; None where there is nothing to choose."""

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"product_{self.n}x{self.k}_{self.dtype}"

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """All of its matrices."""
        return self.weight, self.inputs, self.sums


@dataclass(frozen=True)
class Rearrangement:
    """What is done with a weight before the first step: from tiles, as it is stored, to rows, as kernels read it."""

    weight: str
    bytes: int
    """Of the result."""
    launch: Launch
    """Its arguments are the weight as it is stored (source) and the result (target)."""


@dataclass(frozen=True)
class Cache:
    """The cache of one layer: K [blocks, heads, block_size, key_size], V with value_size, in one dtype."""

    heads: int
    key_size: int
    value_size: int
    dtype: str


CACHE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "fp8": 1}
"""Bytes of a number in a cache, by its dtype."""


def cache_arrays(dtype: str) -> tuple[str, ...]:
    """The arrays of a layer's cache; eight bits have a scale (fp32) for each token and head."""
    return ("k", "v", "k_scale", "v_scale") if CACHE_BYTES[dtype] == 1 else ("k", "v")


@dataclass(frozen=True)
class Workspace:
    """Memory that outlives a step, zeroed once."""

    name: str
    bytes: int
    """In all; 0 where it is per token or sequence."""
    bytes_per_token: int = 0
    bytes_per_sequence: int = 0
    """For each sequence whose tokens are chosen on the device."""


@dataclass(frozen=True)
class Plan:
    """Everything that the runtime needs to run a program, but for code and weights."""

    target: str
    kernels: tuple[Kernel, ...]
    launches: tuple[Launch | Product, ...]
    weights: tuple[str, ...]
    weight_bytes: tuple[int, ...]
    """The length of each, as it is stored."""
    rearrangements: tuple[Rearrangement, ...]
    caches: tuple[Cache, ...]
    workspaces: tuple[Workspace, ...]
    arena_bytes_per_token: int
    vocabulary: int
    block_size: int
    """Tokens in a block of the cache; kernels are made for it."""
    sampling: tuple[Launch, ...] = field(default=())
    """After the launches of a step, where tokens are chosen on the device."""
    crossovers: Mapping[str, Crossover] = field(default_factory=dict)
    """Of each linear that has variants: those that chose the launches (see `llmc.runtime.cuda.selection`)."""
    shares: Mapping[str, Shares] = field(default_factory=dict)
    """Of each kind of attention: over how many programs its keys are divided in decode steps."""
