"""The arguments of a node by name, in one spelling: defaults filled in, dimensions counted from the front."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

_DIMENSIONS = frozenset({"dim", "dims", "dim0", "dim1", "start_dim", "end_dim"})
_ONE_MORE = frozenset({torch.ops.aten.unsqueeze.default, torch.ops.aten.stack.default})
"""Ops whose dimension counts in the result, which has one dimension more than the input."""


@cache
def parameters(target: OpOverload) -> tuple[tuple[str, bool, object], ...]:
    """Of each parameter of `target`: its name, whether it has a default, and the default."""
    return tuple(
        (argument.name, argument.has_default_value(), argument.default_value) for argument in target._schema.arguments
    )


def by_name(target: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `target` by parameter name, defaults filled in; by position for plain Python."""
    if not isinstance(target, OpOverload):
        return {str(position): value for position, value in enumerate(args)} | dict(kwargs)
    found: dict[str, Any] = {}
    for position, (name, has_default, default) in enumerate(parameters(target)):
        if position < len(args):
            found[name] = args[position]
        elif name in kwargs:
            found[name] = kwargs[name]
        elif has_default:
            found[name] = default
    return found


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of `node` by parameter name, defaults filled in and dimensions counted from the front.

    For `operator.*` targets the names are the positions, "0" and "1".
    """
    found = by_name(node.target, node.args, node.kwargs)
    return from_front(node.target, found, rank_of_input(found))


def from_front(target: Callable[..., Any] | str, named: Mapping[str, Any], rank: int | None) -> dict[str, Any]:
    """`named` with negative dimensions made positive, when the rank of the op's first tensor is known."""
    if rank is None or not isinstance(target, OpOverload):
        return dict(named)
    span = rank + 1 if target in _ONE_MORE else rank
    return {name: _forward(value, span) if name in _DIMENSIONS else value for name, value in named.items()}


def rank_of_input(named: Mapping[str, Any]) -> int | None:
    """The rank of the first tensor among the arguments (for a list of tensors, of its first); None when unknown."""
    for value in named.values():
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(first, fx.Node):
            fake = first.meta.get("val")
            return fake.dim() if isinstance(fake, torch.Tensor) else None
    return None


def _forward(value: object, span: int) -> object:
    if isinstance(value, (list, tuple)):
        return [_forward(item, span) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        return value + span
    return value
