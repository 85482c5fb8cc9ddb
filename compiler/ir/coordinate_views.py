"""How ATen ops that move elements about act on coordinates: what to look up where."""

from typing import Any

import sympy
import torch
from torch import fx

from llmc.ir.coordinates import At, Coordinates, Index, Rule, choose, sequence

aten = torch.ops.aten


def argument(node: fx.Node, position: int, name: str, default: object = None) -> Any:  # noqa: ANN401 - any argument
    """The argument of a call at `position` or by `name`."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def same(context: Coordinates, node: fx.Node) -> At:
    """The rule of ops that give their operand back, perhaps broadcast."""
    base = context.operand(node.args[0])
    return lambda index: base.broadcast_at(index)


def dim_of(value: object, rank: int) -> int:
    """A dimension counted from the front."""
    assert isinstance(value, int), f"expected a dimension, got {value!r}"
    return value + rank if value < 0 else value


def _unsqueeze(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    dim = dim_of(argument(node, 1, "dim"), len(base.shape) + 1)
    return lambda index: base.at(index[:dim] + index[dim + 1 :])


def _reshape(context: Coordinates, node: fx.Node) -> At:
    base, shape = context.operand(node.args[0]), context.shape(node)
    old = [i for i, size in enumerate(base.shape) if size != 1]
    new = [i for i, size in enumerate(shape) if size != 1]
    if [base.shape[i] for i in old] == [shape[i] for i in new]:

        def moved(index: Index) -> sympy.Basic:
            own = [sympy.S.Zero] * len(base.shape)
            for to, come in zip(old, new, strict=True):
                own[to] = index[come]
            return base.at(tuple(own))

        return moved

    def at(index: Index) -> sympy.Basic:
        linear = sympy.S.Zero
        for size, i in zip(shape, index, strict=True):
            linear = linear * size + i
        own: list[sympy.Expr] = []
        for size in reversed(base.shape[1:]):
            own.append(sympy.Mod(linear, size))
            linear = sympy.floor(linear / size)
        return base.at((linear, *reversed(own)))

    return at


def _permute(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    rank = len(base.shape)
    if node.target is aten.transpose.int:
        a, b = (dim_of(value, rank) for value in node.args[1:3])
        order = list(range(rank))
        order[a], order[b] = order[b], order[a]
    elif node.target is aten.t.default:
        order = list(reversed(range(rank)))
    else:
        order = [dim_of(value, rank) for value in sequence(node.args[1])]
    places = {source: place for place, source in enumerate(order)}
    return lambda index: base.at(tuple(index[places[i]] for i in range(rank)))


def _slice(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    dim = dim_of(argument(node, 1, "dim", 0), len(base.shape))
    start, step = argument(node, 2, "start", 0), argument(node, 4, "step", 1)
    first = sympy.S.Zero if start is None else context.size(start)
    if first.is_negative or (first.is_Integer and first < 0):
        first = base.shape[dim] + first
    stride = context.size(step)
    return lambda index: base.at((*index[:dim], first + stride * index[dim], *index[dim + 1 :]))


def _select(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    dim = dim_of(argument(node, 1, "dim"), len(base.shape))
    place = context.size(node.args[2])
    if place.is_Integer and place < 0:
        place = base.shape[dim] + place
    return lambda index: base.at((*index[:dim], place, *index[dim:]))


def _cat(context: Coordinates, node: fx.Node) -> At:
    parts = [context.operand(part) for part in sequence(node.args[0])]
    dim = dim_of(argument(node, 1, "dim", 0), len(parts[0].shape))
    parts = [part for part in parts if len(part.shape) > dim]

    def at(index: Index) -> sympy.Basic:
        starts = [sympy.S.Zero]
        for part in parts:
            starts.append(starts[-1] + part.shape[dim])
        result: sympy.Basic | None = None
        for part, start in reversed(list(zip(parts, starts, strict=False))):
            inner = part.at((*index[:dim], index[dim] - start, *index[dim + 1 :]))
            end = start + part.shape[dim]
            result = inner if result is None else choose(sympy.Lt(index[dim], end), inner, result)
        assert result is not None
        return result

    return at


def _index(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    places = list(sequence(node.args[1]))
    places += [None] * (len(base.shape) - len(places))
    indexed = [i for i, place in enumerate(places) if place is not None]
    formulas = {i: context.operand(places[i]) for i in indexed}
    rank = max(len(formula.shape) for formula in formulas.values())
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    first = indexed[0] if adjacent else 0

    def at(index: Index) -> sympy.Basic:
        shared, rest = index[first : first + rank], list(index[:first] + index[first + rank :])
        own: list[sympy.Expr] = []
        for i in range(len(base.shape)):
            if i not in formulas:
                own.append(rest.pop(0))
                continue
            place = formulas[i].broadcast_at(shared)
            own.append(base.shape[i] + place if place.is_Integer and place < 0 else place)
        return base.at(tuple(own))

    return at


def _repeat(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    extra = len(context.shape(node)) - len(base.shape)
    return lambda index: base.at(
        tuple(
            sympy.S.Zero if size == 1 else sympy.Mod(i, size) for size, i in zip(base.shape, index[extra:], strict=True)
        )
    )


VIEWS: dict[object, Rule] = {
    aten.expand.default: same,
    aten.repeat.default: _repeat,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _reshape,
    aten.squeeze.dims: _reshape,
    aten.squeeze.default: _reshape,
    aten.reshape.default: _reshape,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.permute.default: _permute,
    aten.transpose.int: _permute,
    aten.t.default: _permute,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.cat.default: _cat,
    aten.index.Tensor: _index,
}
"""Formula rule of each op that moves elements about."""
