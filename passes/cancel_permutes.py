"""Queries and keys are turned to [heads, tokens, D] for their rotation and back for the cache: neither is needed."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx
from torch._ops import OpOverload

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.ir.signature import arguments
from llmc.ir.sizes import number

aten = torch.ops.aten
dialect = torch.ops.llmc

_OVER_LAST = frozenset({dialect.rope.default, dialect.rms_norm.default, dialect.layer_norm.default})
"""Ops over the last dimension, whose first operand decides the shape and whose others are broadcast to it."""

_ALONG = frozenset({aten.split_with_sizes.default, aten.slice.Tensor, aten.cat.default, operator.getitem})
"""Data movement along a dimension, which may be the last one."""


@dataclass(frozen=True)
class CancelPermutes:
    """Where values are permuted, worked on element by element or along the last dimension, and permuted back on every
    path, leave both permutations out, and permute the small operands in between instead.
    """

    name: ClassVar[str] = "cancel_permutes"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Cancel all such permutations; return at how many places."""
        places = 0
        for first in model.calls(aten.permute.default):
            region = _region(first) if first.users else None
            if region is not None:
                places += _cancel(self.name, rewriter, region)
        return places


@dataclass
class _Region:
    """What lies between permutations by `order` and their inverses."""

    order: list[int]
    entries: list[fx.Node] = field(default_factory=list)
    """Permutations by `order`."""
    between: set[fx.Node] = field(default_factory=set)
    exits: list[fx.Node] = field(default_factory=list)
    """Permutations by the inverse."""

    def permutes(self, node: fx.Node) -> bool:
        """Whether `node` is a permutation by `order`."""
        return node.target is aten.permute.default and _order(node) == self.order

    def undoes(self, node: fx.Node) -> bool:
        """Whether `node` is a permutation by the inverse of `order`."""
        return node.target is aten.permute.default and [self.order[dim] for dim in _order(node)] == sorted(self.order)

    def is_small(self, node: fx.Node) -> bool:
        """Whether `node` is broadcast to the values of the region: permuting it is nothing beside what is saved."""
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return False
        broadcast = value.dim() < len(self.order) or 1 in [number(size) for size in value.shape]
        return broadcast or node.target is aten.expand.default


def _order(permute: fx.Node) -> list[int]:
    dims: Any = permute.args[1]
    return list(dims)


def _region(first: fx.Node) -> _Region | None:
    """The region that `first` enters; None when something in it is not undone, or cannot be done unpermuted."""
    region = _Region(_order(first), [first])
    stack = [first]
    while stack:
        for user in stack.pop().users:
            if region.undoes(user):
                region.exits.append(user)
            elif user not in region.between:
                if not _commutes(user, region):
                    return None
                region.between.add(user)
                large = [node for node in user.all_input_nodes if not region.is_small(node)]
                fresh = [node for node in large if node not in region.between and node not in region.entries]
                if not all(map(region.permutes, fresh)):
                    return None
                region.entries.extend(fresh)
                stack.extend([user, *fresh])
    return region if region.between and region.exits else None


def _commutes(op: fx.Node, region: _Region) -> bool:
    """Whether `op` may be applied to its large operands before they are permuted."""
    last = len(region.order) - 1
    value = op.meta.get("val")
    if isinstance(value, torch.Tensor) and value.dim() != last + 1:
        return False
    if op.target in _OVER_LAST or op.target is operator.getitem:
        return region.order[last] == last and not any(region.is_small(node) for node in op.all_input_nodes[:1])
    if op.target in _ALONG:
        return region.order[last] == last and arguments(op)["dim"] == last
    return isinstance(op.target, OpOverload) and torch.Tag.pointwise in op.target.tags


def _cancel(rule: str, rewriter: Rewriter, region: _Region) -> int:
    sources: list[Any] = [entry.args[0] for entry in region.entries]
    inside = {*region.entries, *region.between}
    steps = sorted(region.between)
    inputs = list(dict.fromkeys([*sources, *(x for op in steps for x in op.all_input_nodes if x not in inside)]))
    back = _order(region.exits[0])
    results: list[Any] = [leaving.args[0] for leaving in region.exits]

    def build(*values: Any) -> object:  # noqa: ANN401 - traced values
        given = dict(zip(inputs, values, strict=True))
        done = {entry: given[source] for entry, source in zip(region.entries, sources, strict=True)}
        for op in steps:
            target: Any = op.target
            args: Any
            args, kwargs = fx.map_arg(
                (op.args, op.kwargs), lambda node: done[node] if node in done else _permuted(given[node], back)
            )
            done[op] = args[0][args[1]] if target is operator.getitem else target(*args, **kwargs)
        return tuple(done[result] for result in results)

    return int(rewriter.replace(rule, inputs, region.exits, build, kind="exact"))


def _permuted(value: Any, order: Sequence[int]) -> Any:  # noqa: ANN401 - a traced value
    """`value`, broadcast to as many dimensions as `order` has, permuted by it; by a reshape if only ones are moved."""
    missing = len(order) - value.ndim
    if value.ndim == 0 or list(order[-value.ndim :]) == list(range(missing, len(order))):
        return value
    sizes = [1] * missing + list(value.shape)
    moved = [dim for dim in order if not isinstance(sizes[dim], int) or sizes[dim] != 1]
    if moved == sorted(moved):
        return value.reshape([sizes[dim] for dim in order])
    return (value.reshape(sizes) if missing else value).permute(list(order))
