"""Random inputs for proofs: sizes for the symbolic dimensions, values that are hard on a wrong rewrite."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
import torch
from torch import fx

from llmc.ir.infer import leaves
from llmc.ir.signature import arguments
from llmc.ir.tracing import aten

Style = Literal["ordinary", "tiny", "mixed", "positive", "zeros"]
"""ordinary: normal; tiny: 1e-3 of that, which shows an epsilon in the wrong place; mixed: zeros, large and negative
values side by side; positive: for roots and logarithms; zeros: divisions by zero."""

Sizes = Mapping[sympy.Symbol, int]

SIZES = (1, 2, 5, 17)
"""Sizes of a symbolic dimension: one finds wrong broadcasts, the others are small, odd, and beyond a block of 16."""

DEFAULT_BOUND = 48
"""Integers are below this where their use does not say: beyond any size above, so that windows and offsets matter."""

_PERIOD = 1_000_003
"""Large tensors repeat a random block of this prime length: filling is as fast as memory, and no two rows are equal."""


@dataclass(frozen=True)
class Round:
    """One trial of a proof."""

    sizes: Sizes
    style: Style
    smaller: Mapping[int, int] = field(default_factory=dict)
    """Fixed sizes of the inputs that are others in this trial (see `llmc.ir.free_sizes`)."""

    def shape(self, val: torch.Tensor) -> list[int]:
        """The sizes of a tensor in this trial."""
        return [
            self.smaller.get(size, size) if isinstance(size, int) else number(size, self.sizes) for size in val.shape
        ]

    def __str__(self) -> str:
        sizes = ", ".join(f"{symbol}={size}" for symbol, size in self.sizes.items())
        return f"{sizes + ', ' if sizes else ''}{self.style} values"


def symbols(graph: fx.Graph) -> list[sympy.Symbol]:
    """The free symbols in the sizes of the inputs of `graph`, in order of appearance."""
    found: dict[sympy.Symbol, None] = {}
    for node in graph.find_nodes(op="placeholder"):
        for expr in _expressions(node.meta["val"]):
            found.update(dict.fromkeys(sorted(expr.free_symbols, key=str)))
    return list(found)


def rounds(free: Sequence[sympy.Symbol], heavy: bool, smaller: Mapping[int, int]) -> Iterator[Round]:
    """The trials of a proof: sizes differ between symbols, and each style is met with sizes above one.

    `heavy` proofs, whose weights cost seconds, get two trials.
    """
    if heavy:
        yield Round(dict.fromkeys(free, 5), "ordinary", smaller)
        yield Round(dict.fromkeys(free, 1), "mixed", smaller)
        return
    styles: tuple[Style, ...] = ("ordinary", "mixed", "tiny", "positive")
    for turn, style in enumerate(styles):
        shifted = {symbol: SIZES[(turn + place) % len(SIZES)] for place, symbol in enumerate(free)}
        yield Round(shifted, style, smaller)
    if free:
        yield Round(dict.fromkeys(free, 1), "mixed", smaller)
        yield Round(dict.fromkeys(free, 5), "mixed", smaller)
    yield Round(dict.fromkeys(free, 2), "zeros", smaller)


def larger_rounds(free: Sequence[sympy.Symbol]) -> Iterator[Round]:
    """Trials for graphs that accept none of the usual sizes, such as those that split a dimension into blocks."""
    for size in (8, 16, 64, 256):
        yield Round(dict.fromkeys(free, size), "ordinary")
        yield Round(dict.fromkeys(free, size), "mixed")


def number(value: Any, sizes: Sizes) -> int:  # noqa: ANN401 - an int or a SymInt
    """A size as a number. Raises `ValueError` when it is not one at these sizes."""
    if isinstance(value, int):
        return value
    expr = value.node.expr.subs(dict(sizes))
    if not expr.is_Integer:
        raise ValueError(f"{value} has no value at {sizes}")
    return int(expr)


def is_large(val: torch.Tensor, round_: Round) -> bool:
    """Whether a tensor is worth drawing only once in a proof: a weight of more than a million elements."""
    return all(isinstance(size, int) for size in val.shape) and math.prod(round_.shape(val)) > _PERIOD


def draw(val: torch.Tensor, round_: Round, bound: int, generator: torch.Generator) -> torch.Tensor:
    """A random tensor of the dtype and sizes of `val`; integers lie in [0, bound)."""
    shape = round_.shape(val)
    if val.dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.7
    if not val.dtype.is_floating_point:
        return torch.randint(0, max(bound, 1), shape, generator=generator, dtype=torch.int64).to(val.dtype)
    count = math.prod(shape)
    block = torch.randn(min(count, _PERIOD), generator=generator, dtype=torch.float32)
    block = _styled(block, round_.style, generator)
    if len(shape) >= 2 and all(isinstance(size, int) for size in val.shape):
        block = block * shape[-1] ** -0.5
    block = block.to(val.dtype)
    if count <= _PERIOD:
        return block.reshape(shape)
    repeats = -(-count // _PERIOD)
    return block.repeat(repeats)[:count].reshape(shape)


def _styled(x: torch.Tensor, style: Style, generator: torch.Generator) -> torch.Tensor:
    if style == "zeros":
        return torch.zeros_like(x)
    if style == "tiny":
        return x * 1e-3
    if style == "positive":
        return x.abs() + 0.01
    if style == "mixed":
        scales = torch.tensor([0.0, 1.0, -1.0, 16.0, 0.01])
        return x * scales[torch.randint(0, len(scales), x.shape, generator=generator)]
    return x


def bounds(graphs: Sequence[fx.Graph]) -> dict[str, list[Any]]:
    """For each integer input, by name: sizes that its values must stay below because they index something."""
    found: dict[str, list[Any]] = {}
    for graph in graphs:
        for node in graph.find_nodes(op="placeholder"):
            found.setdefault(node.name, []).extend(_limits(node, set()))
    return found


_PASSES_ON = frozenset(
    {
        aten.reshape.default, aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
        aten.expand.default, aten.permute.default, aten.slice.Tensor, aten.select.int, aten._to_copy.default,
        aten.clone.default, aten.cat.default,
    }
)  # fmt: skip
"""Ops whose result holds the same integers as their input."""


def _limits(node: fx.Node, seen: set[fx.Node]) -> Iterator[Any]:
    for user in node.users:
        if user in seen or user.op != "call_function":
            continue
        seen.add(user)
        if user.target in _PASSES_ON:
            yield from _limits(user, seen)
        else:
            yield from _limit_of_use(node, user)


def _limit_of_use(node: fx.Node, user: fx.Node) -> Iterator[Any]:
    named = arguments(user)
    if user.target is aten.embedding.default and named["indices"] is node:
        yield named["weight"].meta["val"].shape[0]
    elif user.target is aten.index.Tensor:
        shape = named["self"].meta["val"].shape
        yield from (shape[dim] for dim, index in enumerate(named["indices"]) if index is node)
    elif user.target in (aten.gather.default, aten.index_select.default) and named["index"] is node:
        yield named["self"].meta["val"].shape[named["dim"]]
    elif "expert_ids" in named and named["expert_ids"] is node:
        yield named["experts"] if "experts" in named else named["down"].meta["val"].shape[0]
    elif user.target is torch.ops.llmc.embedding_packed.default and named["tokens"] is node:
        yield named["n"]
    elif str(user.target).startswith("aten.scatter") and named.get("index") is node:
        yield named["self"].meta["val"].shape[named["dim"]]


def _expressions(val: object) -> Iterator[sympy.Expr]:
    for leaf in leaves(val):
        for size in leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,):
            if isinstance(size, torch.SymInt):
                yield size.node.expr
