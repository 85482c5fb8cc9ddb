"""Projections of one input made one projection: the part that `fuse_qkv` and `fuse_gate_up` have in common."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import fx

from llmc.ir.model import Model, Origin
from llmc.ir.rewrite import Rewriter

aten = torch.ops.aten

LINEAR = aten.linear.default


@runtime_checkable
class _StoresTypes(Protocol):
    """A checkpoint reader whose tensors are quantized."""

    def stored_type(self, key: str) -> str:
        """The type in which a tensor is stored, such as `Q4_K`."""


def merge_linears(
    model: Model, rewriter: Rewriter, rule: str, linears: Sequence[fx.Node], together: bool = False
) -> int:
    """Merge those of `linears` that read the same input; return how many merged projections were made.

    `linear(x, a)` and `linear(x, b)` become parts of `linear(x, cat([a, b]))`, whose weight is a recipe as soon as
    constants are folded. Weights that a file stores in different types are kept apart, unless `together` says that
    they will be stored alike. A missing bias becomes zeros when another of them has one: adding zero to the accumulated
    sum changes nothing. Why a projection is left out is recorded under `rule`.
    """
    fit: list[fx.Node] = []
    for linear in sorted(dict.fromkeys(linears)):
        reason = _unfit(model, linear)
        if reason is None:
            fit.append(linear)
        else:
            rewriter.refuse(rule, linear, reason)
    groups: dict[tuple[object, ...], list[fx.Node]] = {}
    for linear in fit:
        kind = _kind(model, linear)
        groups.setdefault((linear.args[0], *(kind[:1] if together else kind)), []).append(linear)
    for one, other in pairwise(groups.values()):
        rewriter.refuse(rule, other[0], _difference(model, one[0], other[0]))
    return sum(_merge(rewriter, rule, group) for group in groups.values() if len(group) > 1)


def reached_linears(start: fx.Node, through: frozenset[object]) -> Iterator[fx.Node]:
    """The projections from which `start` is computed by the ops of `through` alone."""
    stack, seen = [start], {start}
    while stack:
        node = stack.pop()
        if node.target is LINEAR:
            yield node
        elif node.target in through:
            fresh = [source for source in node.all_input_nodes if source not in seen]
            seen.update(fresh)
            stack.extend(fresh)


def _unfit(model: Model, linear: fx.Node) -> str | None:
    """Why `linear` cannot be merged with any other; None when it can."""
    name = _name(linear)
    for parameter in linear.args[1:]:
        if parameter is None:
            continue
        if not isinstance(parameter, fx.Node) or not model.is_weight(parameter):
            return f"a weight of {name} is computed in the graph"
        others = [user for user in parameter.users if user is not linear]
        others += [user for tied in _tied(model, parameter) for user in tied.users]
        if others:
            return f"{parameter.name} of {name} is also used by {_name(others[0])}"
    return None


def _tied(model: Model, parameter: fx.Node) -> list[fx.Node]:
    """The other placeholders of the weight that `parameter` stands for."""
    weight = model.weights[parameter.name]
    return [
        other for other in model.placeholders() if other is not parameter and model.weights.get(other.name) == weight
    ]


def _kind(model: Model, linear: fx.Node) -> tuple[torch.dtype, tuple[str, ...]]:
    """What must be equal for two weights to be stored as one: dtype, and how the checkpoint stores their tensors."""
    weight: Any = linear.args[1]
    stored = {
        source.reader.stored_type(source.key)
        for source in model.weights[weight.name].sources()
        if isinstance(source.reader, _StoresTypes)
    }
    return weight.meta["val"].dtype, tuple(sorted(stored))


def _difference(model: Model, one: fx.Node, other: fx.Node) -> str:
    """Why two projections are in different groups."""
    names = _name(one), _name(other)
    if one.args[0] is not other.args[0]:
        return f"{names[1]} reads {other.args[0]}, {names[0]} reads {one.args[0]}"
    (first, first_stored), (second, second_stored) = _kind(model, one), _kind(model, other)
    if first != second:
        return f"the weight of {names[1]} is {_dtype(second)}, that of {names[0]} {_dtype(first)}"
    stored = ["+".join(types) or "plain numbers" for types in (second_stored, first_stored)]
    return f"{names[1]} is stored as {stored[0]}, {names[0]} as {stored[1]}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name(node: fx.Node) -> str:
    """The module that computed `node`, such as `q_proj`; the node's own name when that is not known."""
    origin = node.meta.get("origin")
    return (origin.module.rpartition(".")[2] if isinstance(origin, Origin) else "") or node.name


def _merge(rewriter: Rewriter, rule: str, linears: Sequence[fx.Node]) -> int:
    biases = [linear.args[2] if len(linear.args) > 2 else None for linear in linears]
    weights: list[Any] = [linear.args[1] for linear in linears]
    source: Any = linears[0].args[0]
    given = [bias for bias in biases if isinstance(bias, fx.Node)]
    inputs = list(dict.fromkeys([source, *weights, *given]))
    sizes = [int(weight.meta["val"].shape[0]) for weight in weights]

    def build(*values: Any) -> object:  # noqa: ANN401 - traced values
        of = dict(zip(inputs, values, strict=True))
        weight = torch.cat([of[weight] for weight in weights], dim=0)
        last = of[source].ndim - 1
        if not given:
            return tuple(LINEAR(of[source], weight).split_with_sizes(sizes, last))
        dtype = of[given[0]].dtype
        parts = [
            of[bias] if isinstance(bias, fx.Node) else aten.full.default([size], 0.0, dtype=dtype)
            for bias, size in zip(biases, sizes, strict=True)
        ]
        return tuple(LINEAR(of[source], weight, torch.cat(parts, dim=0)).split_with_sizes(sizes, last))

    return int(rewriter.replace(rule, inputs, list(linears), build))
