"""How ATen ops act on coordinates: the table behind `llmc.ir.coordinates`."""

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx

from llmc.ir.coordinates import (
    At,
    Coordinates,
    Index,
    Rule,
    as_number,
    as_predicate,
    choose,
    number,
    sequence,
)

aten = torch.ops.aten

_FAR = 1 << 62
"""Slices spell "to the end" as the largest int64."""


def _argument(node: fx.Node, position: int, name: str, default: object = None) -> Any:  # noqa: ANN401 - any argument
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _pointwise(function: Callable[..., sympy.Basic]) -> Rule:
    def rule(context: Coordinates, node: fx.Node) -> At:
        operands = [context.operand(arg) for arg in node.args]
        return lambda index: function(*(operand.broadcast_at(index) for operand in operands))

    return rule


def _numbers(function: Callable[..., sympy.Basic]) -> Callable[..., sympy.Basic]:
    return lambda *values: function(*(as_number(value) for value in values))


def _scaled(function: Callable[[sympy.Expr, sympy.Expr], sympy.Expr]) -> Rule:
    def rule(context: Coordinates, node: fx.Node) -> At:
        left, right = context.operand(node.args[0]), context.operand(node.args[1])
        alpha = context.operand(node.kwargs.get("alpha", 1))

        def at(index: Index) -> sympy.Basic:
            a, b = as_number(left.broadcast_at(index)), as_number(right.broadcast_at(index))
            return function(a, b * alpha.at(()))

        return at

    return rule


def _floor_divide(a: sympy.Expr, b: sympy.Expr) -> sympy.Basic:
    return sympy.floor(a / b)


def _divide(context: Coordinates, node: fx.Node) -> At | None:
    mode = node.kwargs.get("rounding_mode")
    left, right = context.operand(node.args[0]), context.operand(node.args[1])
    if mode not in (None, "floor"):
        return None
    function = _floor_divide if mode == "floor" else (lambda a, b: a / b)
    return lambda index: function(as_number(left.broadcast_at(index)), as_number(right.broadcast_at(index)))


def _full(position: int) -> Rule:
    def rule(context: Coordinates, node: fx.Node) -> At:
        value = context.operand(_argument(node, position, "fill_value"))
        return lambda _: value.at(())

    return rule


def _constant(value: int) -> Rule:
    return lambda context, node: lambda _: number(value)


def _arange(context: Coordinates, node: fx.Node) -> At:
    arguments = list(node.args)
    start, step = (arguments[0] if len(arguments) > 1 else 0), (arguments[2] if len(arguments) > 2 else 1)
    step = node.kwargs.get("step", step)
    first, stride = context.size(start), context.size(step)
    return lambda index: first + stride * index[0]


def _same(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    return lambda index: base.broadcast_at(index)


def _dim(value: int, rank: int) -> int:
    return value + rank if value < 0 else value


def _unsqueeze(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    dim = _dim(int(node.args[1]), len(base.shape) + 1)  # type: ignore[arg-type]
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
        a, b = (_dim(int(value), rank) for value in node.args[1:3])  # type: ignore[arg-type]
        order = list(range(rank))
        order[a], order[b] = order[b], order[a]
    elif node.target is aten.t.default:
        order = list(reversed(range(rank)))
    else:
        order = [_dim(int(value), rank) for value in sequence(node.args[1])]  # type: ignore[call-overload]
    places = {source: place for place, source in enumerate(order)}
    return lambda index: base.at(tuple(index[places[i]] for i in range(rank)))


def _slice(context: Coordinates, node: fx.Node) -> At | None:
    base = context.operand(node.args[0])
    dim = _dim(_argument(node, 1, "dim", 0), len(base.shape))
    start, step = _argument(node, 2, "start", 0), _argument(node, 4, "step", 1)
    first = sympy.S.Zero if start is None else context.size(start)
    if first.is_negative or (first.is_Integer and first < 0):
        first = base.shape[dim] + first
    stride = context.size(step)
    return lambda index: base.at((*index[:dim], first + stride * index[dim], *index[dim + 1 :]))


def _select(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    dim = _dim(int(node.args[1]), len(base.shape))  # type: ignore[arg-type]
    place = context.size(node.args[2])
    if place.is_Integer and place < 0:
        place = base.shape[dim] + place
    return lambda index: base.at((*index[:dim], place, *index[dim:]))


def _cat(context: Coordinates, node: fx.Node) -> At:
    parts = [context.operand(part) for part in sequence(node.args[0])]
    dim = _dim(_argument(node, 1, "dim", 0), len(parts[0].shape))
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


def _index(context: Coordinates, node: fx.Node) -> At | None:
    base = context.operand(node.args[0])
    places = list(sequence(node.args[1]))
    places += [None] * (len(base.shape) - len(places))
    indexed = [i for i, place in enumerate(places) if place is not None]
    formulas = {i: context.operand(places[i]) for i in indexed}
    if any(formula is None for formula in formulas.values()):
        return None
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


def _where(context: Coordinates, node: fx.Node) -> At:
    condition, then, other = (context.operand(arg) for arg in node.args[:3])
    return lambda index: choose(
        as_predicate(condition.broadcast_at(index)), then.broadcast_at(index), other.broadcast_at(index)
    )


def _masked_fill(context: Coordinates, node: fx.Node) -> At:
    base, condition, value = (context.operand(arg) for arg in node.args[:3])
    return lambda index: choose(
        as_predicate(condition.broadcast_at(index)), value.broadcast_at(index), base.broadcast_at(index)
    )


def _triangle(lower: bool) -> Rule:
    def rule(context: Coordinates, node: fx.Node) -> At:
        base = context.operand(node.args[0])
        diagonal = context.size(_argument(node, 1, "diagonal", 0))

        def at(index: Index) -> sympy.Basic:
            distance = index[-1] - index[-2]
            kept = sympy.Le(distance, diagonal) if lower else sympy.Ge(distance, diagonal)
            return choose(kept, as_number(base.at(index)), sympy.S.Zero)

        return at

    return rule


def _cumsum(context: Coordinates, node: fx.Node) -> At | None:
    base = context.operand(node.args[0])
    dim = _dim(int(node.args[1]), len(base.shape))  # type: ignore[arg-type]
    probe = sympy.Symbol("probe", integer=True, nonnegative=True)
    others = tuple(sympy.Symbol(f"other{i}", integer=True, nonnegative=True) for i in range(len(base.shape)))
    value = as_number(base.at((*others[:dim], probe, *others[dim + 1 :])))
    if probe in value.free_symbols:
        return None
    return lambda index: as_number(base.at(index)) * (index[dim] + 1)


def _diff(context: Coordinates, node: fx.Node) -> At | None:
    base = context.operand(node.args[0])
    if _argument(node, 1, "n", 1) != 1 or _argument(node, 4, "append") is not None:
        return None
    dim = _dim(_argument(node, 2, "dim", -1), len(base.shape))
    before = _argument(node, 3, "prepend")

    def step(index: Index, place: sympy.Expr) -> sympy.Basic:
        def at(i: sympy.Expr) -> sympy.Basic:
            return as_number(base.at((*index[:dim], i, *index[dim + 1 :])))

        return sympy.simplify(at(place) - at(place - 1))

    if before is None:
        return lambda index: step(index, index[dim] + 1)
    first = context.operand(before)
    if first.shape[dim] != 1:
        return None

    def at(index: Index) -> sympy.Basic:
        zero = (*index[:dim], sympy.S.Zero, *index[dim + 1 :])
        start = sympy.simplify(as_number(base.at(zero)) - as_number(first.at(zero)))
        return choose(sympy.Lt(index[dim], 1), start, step(index, index[dim]))

    return at


def _repeat(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    extra = len(context.shape(node)) - len(base.shape)
    return lambda index: base.at(
        tuple(
            sympy.S.Zero if size == 1 else sympy.Mod(i, size) for size, i in zip(base.shape, index[extra:], strict=True)
        )
    )


def _logical(function: Callable[..., sympy.Basic]) -> Rule:
    return _pointwise(lambda *values: function(*(as_predicate(value) for value in values)))


def _not(value: sympy.Basic) -> sympy.Basic:
    return sympy.Not(as_predicate(value))


def _bitwise_not(context: Coordinates, node: fx.Node) -> At | None:
    if node.meta["val"].dtype != torch.bool:
        return None
    return _logical(sympy.Not)(context, node)


def _bitwise(function: Callable[..., sympy.Basic]) -> Rule:
    def rule(context: Coordinates, node: fx.Node) -> At | None:
        return _logical(function)(context, node) if node.meta["val"].dtype == torch.bool else None

    return rule


def _clamp(context: Coordinates, node: fx.Node) -> At:
    base = context.operand(node.args[0])
    low, high = _argument(node, 1, "min"), _argument(node, 2, "max")

    def at(index: Index) -> sympy.Basic:
        value = as_number(base.at(index))
        value = value if low is None else sympy.Max(value, context.operand(low).at(()))
        return value if high is None else sympy.Min(value, context.operand(high).at(()))

    return at


def _add(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    return a + b


RULES: dict[object, Rule] = {
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
    aten.full.default: _full(1),
    aten.full_like.default: _full(1),
    aten.new_full.default: _full(2),
    aten.scalar_tensor.default: _full(0),
    aten.zeros.default: _constant(0),
    aten.ones.default: _constant(1),
    aten.zeros_like.default: _constant(0),
    aten.ones_like.default: _constant(1),
    aten.new_zeros.default: _constant(0),
    aten.new_ones.default: _constant(1),
    aten.add.Tensor: _scaled(_add),
    aten.add.Scalar: _scaled(_add),
    aten.sub.Tensor: _scaled(lambda a, b: a - b),
    aten.sub.Scalar: _scaled(lambda a, b: a - b),
    aten.rsub.Scalar: _scaled(lambda a, b: b - a),
    aten.mul.Tensor: _pointwise(_numbers(lambda a, b: a * b)),
    aten.mul.Scalar: _pointwise(_numbers(lambda a, b: a * b)),
    aten.div.Tensor: _divide,
    aten.div.Tensor_mode: _divide,
    aten.div.Scalar: _divide,
    aten.floor_divide.default: _pointwise(_numbers(_floor_divide)),
    aten.remainder.Tensor: _pointwise(_numbers(sympy.Mod)),
    aten.remainder.Scalar: _pointwise(_numbers(sympy.Mod)),
    aten.neg.default: _pointwise(_numbers(lambda a: -a)),
    aten.abs.default: _pointwise(_numbers(sympy.Abs)),
    aten.floor.default: _pointwise(_numbers(sympy.floor)),
    aten.minimum.default: _pointwise(_numbers(sympy.Min)),
    aten.maximum.default: _pointwise(_numbers(sympy.Max)),
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.lt.Tensor: _pointwise(_numbers(sympy.Lt)),
    aten.lt.Scalar: _pointwise(_numbers(sympy.Lt)),
    aten.le.Tensor: _pointwise(_numbers(sympy.Le)),
    aten.le.Scalar: _pointwise(_numbers(sympy.Le)),
    aten.gt.Tensor: _pointwise(_numbers(sympy.Gt)),
    aten.gt.Scalar: _pointwise(_numbers(sympy.Gt)),
    aten.ge.Tensor: _pointwise(_numbers(sympy.Ge)),
    aten.ge.Scalar: _pointwise(_numbers(sympy.Ge)),
    aten.eq.Tensor: _pointwise(_numbers(sympy.Eq)),
    aten.eq.Scalar: _pointwise(_numbers(sympy.Eq)),
    aten.ne.Tensor: _pointwise(_numbers(sympy.Ne)),
    aten.ne.Scalar: _pointwise(_numbers(sympy.Ne)),
    aten.logical_and.default: _logical(sympy.And),
    aten.logical_or.default: _logical(sympy.Or),
    aten.logical_xor.default: _logical(sympy.Xor),
    aten.logical_not.default: _pointwise(_not),
    aten.bitwise_not.default: _bitwise_not,
    aten.bitwise_and.Tensor: _bitwise(sympy.And),
    aten.bitwise_or.Tensor: _bitwise(sympy.Or),
    aten.bitwise_xor.Tensor: _bitwise(sympy.Xor),
    aten.__and__.Tensor: _bitwise(sympy.And),
    aten.__or__.Tensor: _bitwise(sympy.Or),
    aten.__xor__.Tensor: _bitwise(sympy.Xor),
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.tril.default: _triangle(lower=True),
    aten.triu.default: _triangle(lower=False),
    aten.cumsum.default: _cumsum,
    aten.diff.default: _diff,
    aten._to_copy.default: _same,
    aten.to.dtype: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.contiguous.default: _same,
    aten.detach.default: _same,
    aten.lift_fresh_copy.default: _same,
    aten.expand.default: _same,
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
"""Formula rule of each op that index arithmetic is made of."""
