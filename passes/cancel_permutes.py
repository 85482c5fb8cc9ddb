"""Queries and keys are turned to [heads, tokens, D] for their rotation and back for the cache: neither is needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch._ops import OpOverload

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.ir.sizes import number

aten = torch.ops.aten
dialect = torch.ops.llmc

_LAST_DIM = frozenset({dialect.rope.default, dialect.rms_norm.default, dialect.layer_norm.default})
"""Ops over the last dimension, whose first operand decides the shape and whose others are broadcast to it."""


@dataclass(frozen=True)
class CancelPermutes:
    """Where a permutation, ops on single elements or on the last dimension, and the inverse permutation follow each
    other, apply the ops to what was permuted, and permute their smaller operands instead.
    """

    name: ClassVar[str] = "cancel_permutes"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Cancel all such pairs; return how many."""
        cancelled = 0
        for first in model.calls(aten.permute.default):
            chain = _chain(first) if first.users else None
            if chain is not None:
                cancelled += _cancel(self.name, rewriter, first, *chain)
        return cancelled


def _chain(first: fx.Node) -> tuple[list[fx.Node], fx.Node] | None:
    """The ops after `first` up to the inverse permutation, and that; None when something else comes in between."""
    order: Any = first.args[1]
    between: list[fx.Node] = []
    node = first
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is aten.permute.default:
            undone = [order[dim] for dim in user.args[1]]  # type: ignore[union-attr]
            return (between, user) if between and undone == sorted(undone) else None
        if not _commutes(user, node, order):
            return None
        between.append(user)
        node = user
    return None


def _commutes(op: fx.Node, operand: fx.Node, order: Sequence[int]) -> bool:
    """Whether `op` may be applied to its first operand, `operand`, before that is permuted by `order`."""
    value = op.meta.get("val")
    if op.args[0] is not operand or not isinstance(value, torch.Tensor) or value.dim() != len(order):
        return False
    if op.target in _LAST_DIM:
        return order[-1] == len(order) - 1
    pointwise = isinstance(op.target, OpOverload) and torch.Tag.pointwise in op.target.tags
    return pointwise and all(_is_small(node) for node in op.args[1:] if isinstance(node, fx.Node))


def _is_small(node: fx.Node) -> bool:
    """Whether `node` is broadcast along a dimension, so that permuting it is nothing beside the pair that is saved."""
    return 1 in [number(size) for size in node.meta["val"].shape] or node.meta["val"].dim() < 2


def _cancel(rule: str, rewriter: Rewriter, first: fx.Node, between: list[fx.Node], last: fx.Node) -> int:
    source: Any = first.args[0]
    back: Any = last.args[1]
    inside = {first, *between}
    inputs = list(dict.fromkeys([source, *(x for op in between for x in op.all_input_nodes if x not in inside)]))

    def build(*values: Any) -> object:  # noqa: ANN401 - traced values
        value_of = dict(zip(inputs, values, strict=True))
        result = value_of[source]
        for op in between:
            target: Any = op.target
            rest = fx.map_arg(op.args[1:], lambda node: _permuted(value_of[node], back))
            result = target(result, *rest, **op.kwargs)
        return result

    return int(rewriter.replace(rule, inputs, [last], build, kind="exact"))


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
