"""Regions: the steps of a compiled program, each one kernel call between two barriers.

A region is an *anchor* (linear, attention, mixture of experts) with what is fused before it (prologue) and after it
(epilogue), or a run of operations that treat each row alone. What has no native form is a region that torch computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmc.codegen.layout import Domain, Scalar, Value, View
from llmc.codegen.torch_calls import TorchCall


@dataclass(frozen=True)
class RowOp:
    """An operation on each row by itself; `inputs` are broadcast against the first output where it is pointwise."""

    op: str
    """Name in the table of `llmc.codegen.cpp.emit_rows`."""
    node: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[View, ...]
    attrs: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class RowRegion:
    """Operations done row after row; the rows are split over the threads."""

    name: str
    origin: str
    domain: Domain
    ops: tuple[RowOp, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class ChainStep:
    """One pointwise operation on the result of an anchor, in its epilogue."""

    op: str
    operand: View | Scalar | None
    """The other operand, of the same shape or one vector for all rows; None for an operation of one value."""
    swapped: bool = False
    """Whether the anchor's result is the second operand."""
    attrs: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Norm:
    """A norm fused into a prologue or epilogue."""

    op: str
    """rms_norm or layer_norm."""
    weight: View | None
    bias: View | None
    eps: float
    offset: float


@dataclass(frozen=True)
class Rotation:
    """RoPE fused into an epilogue: cos and sin are rows of `size` elements."""

    cos: View
    sin: View
    size: int
    interleaved: bool


@dataclass(frozen=True)
class HeadPart:
    """Some heads among the outputs of a linear, and where they go."""

    role: str
    """q or store (to `target`), k or v (to the cache of `layer`)."""
    heads: int
    norm: Norm | None
    rotation: Rotation | None
    target: View | None
    layer: int
    """Of the cache; -1 for heads that are not cached."""


@dataclass(frozen=True)
class Linear:
    """`rows x K` times a packed weight `N x K`."""

    name: str
    origin: str
    domain: Domain
    format: str
    n: int
    k: int
    weights: tuple[str, ...]
    """Parts of the packed weight, by name."""
    source: View | RowOp
    """The input rows: as they lie, or made by one operation fused into the prologue (its output is not stored)."""
    bias: View | None
    gate: str
    """Activation of the first half that multiplies the second; empty if the linear is not gated."""
    chain: tuple[ChainStep, ...]
    target: View | None
    """Where the result goes; None when `parts` say it."""
    parts: tuple[HeadPart, ...]
    head_of: tuple[tuple[int, int], ...]
    """For each run of `head_size` outputs: which of `parts`, and which of its heads."""
    head_size: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Attention:
    """Attention over the paged cache of one layer."""

    name: str
    origin: str
    layer: int
    heads: int
    key_heads: int
    key_size: int
    value_size: int
    query: View
    output: View
    sinks: View | None
    tables: tuple[View, ...]
    mask: str
    bias: str
    scale: float
    softcap: float
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Experts:
    """A mixture of experts over packed weights."""

    name: str
    origin: str
    domain: Domain
    source: View
    ids: View
    gates: View
    up: tuple[str, ...]
    down: tuple[str, ...]
    up_bias: View | None
    down_bias: View | None
    output: View
    attrs: Mapping[str, object]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class TorchRegion:
    """Operations that have no native form: torch computes them, on the same memory."""

    name: str
    origin: str
    domain: Domain
    inputs: tuple[View, ...]
    outputs: tuple[View, ...]
    call: TorchCall
    spelled: str
    """The call as JSON: regions of equal calls do the same."""
    reasons: tuple[tuple[str, str], ...]
    """Each operation without a native form, and why it has none."""
    nodes: tuple[str, ...]


Region = RowRegion | Linear | Attention | Experts | TorchRegion
