"""How ATen ops act on coordinates, the table behind `llmc.ir.coordinates`: creation, arithmetic, comparisons, choices.

The ops that only move elements about are in `llmc.ir.coordinate_views`.
"""

from collections.abc import Callable

import sympy
import torch
from torch import fx

from llmc.ir.coordinate_views import VIEWS, argument, dim_of, same
from llmc.ir.coordinates import (
    INFINITE,
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


def _pointwise(function: Callable[..., sympy.Basic]) -> Rule:
    def rule(context: Coordinates, node: fx.Node) -> At:
        operands = [context.operand(arg) for arg in node.args]
        return lambda index: function(*(operand.broadcast_at(index) for operand in operands))

    return rule


def _numbers(function: Callable[..., sympy.Basic]) -> Callable[..., sympy.Basic]:
    return lambda *values: function(*(as_number(value) for value in values))


def _ordered(relation: Callable[..., sympy.Basic]) -> Callable[..., sympy.Basic]:
    """A comparison of numbers, in which a masked score is below every other."""

    def compare(a: sympy.Expr, b: sympy.Expr) -> sympy.Basic:
        result = relation(a, b)
        return result.subs(INFINITE, -sympy.oo) if INFINITE in result.free_symbols else result

    return _numbers(compare)


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
        value = context.operand(argument(node, position, "fill_value"))
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
        diagonal = context.size(argument(node, 1, "diagonal", 0))

        def at(index: Index) -> sympy.Basic:
            distance = index[-1] - index[-2]
            kept = sympy.Le(distance, diagonal) if lower else sympy.Ge(distance, diagonal)
            return choose(kept, as_number(base.at(index)), sympy.S.Zero)

        return at

    return rule


def _cumsum(context: Coordinates, node: fx.Node) -> At | None:
    base = context.operand(node.args[0])
    dim = dim_of(argument(node, 1, "dim"), len(base.shape))
    probe = sympy.Symbol("probe", integer=True, nonnegative=True)
    others = tuple(sympy.Symbol(f"other{i}", integer=True, nonnegative=True) for i in range(len(base.shape)))
    value = as_number(base.at((*others[:dim], probe, *others[dim + 1 :])))
    if probe in value.free_symbols:
        return None
    return lambda index: as_number(base.at(index)) * (index[dim] + 1)


def _diff(context: Coordinates, node: fx.Node) -> At | None:
    base = context.operand(node.args[0])
    if argument(node, 1, "n", 1) != 1 or argument(node, 4, "append") is not None:
        return None
    dim = dim_of(argument(node, 2, "dim", -1), len(base.shape))
    before = argument(node, 3, "prepend")

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


def _extreme(last: bool) -> Rule:
    """The largest (`last`) or smallest element over all dimensions, or over those given, of what is linear in them."""

    def rule(context: Coordinates, node: fx.Node) -> At | None:
        base = context.operand(node.args[0])
        rank = len(base.shape)
        dims = argument(node, 1, "dim")
        reduced = set(range(rank)) if not dims else {dim_of(dim, rank) for dim in sequence(dims)}
        probe = [sympy.Symbol(f"probe{dim}", integer=True, nonnegative=True) for dim in range(rank)]
        value = as_number(base.at(tuple(probe)))
        ends: dict[int, sympy.Expr] = {}
        for dim in reduced:
            slope = value.diff(probe[dim]) if value.is_polynomial(*probe) else sympy.nan
            if not slope.is_Number or slope is sympy.nan:
                return None
            ends[dim] = base.shape[dim] - 1 if (slope > 0) == last else sympy.S.Zero
        kept = rank == len(node.meta["val"].shape)

        def at(index: Index) -> sympy.Basic:
            rest = list(index)
            place = [ends[d] if d in reduced else rest[d] if kept else rest.pop(0) for d in range(rank)]
            return as_number(base.at(tuple(place)))

        return at

    return rule


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
    low, high = argument(node, 1, "min"), argument(node, 2, "max")

    def at(index: Index) -> sympy.Basic:
        value = as_number(base.at(index))
        value = value if low is None else sympy.Max(value, context.operand(low).at(()))
        return value if high is None else sympy.Min(value, context.operand(high).at(()))

    return at


def _add(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    return a + b


RULES: dict[object, Rule] = {
    **VIEWS,
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
    aten.max.default: _extreme(last=True),
    aten.min.default: _extreme(last=False),
    aten.amax.default: _extreme(last=True),
    aten.amin.default: _extreme(last=False),
    aten.minimum.default: _pointwise(_numbers(sympy.Min)),
    aten.maximum.default: _pointwise(_numbers(sympy.Max)),
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.lt.Tensor: _pointwise(_ordered(sympy.Lt)),
    aten.lt.Scalar: _pointwise(_ordered(sympy.Lt)),
    aten.le.Tensor: _pointwise(_ordered(sympy.Le)),
    aten.le.Scalar: _pointwise(_ordered(sympy.Le)),
    aten.gt.Tensor: _pointwise(_ordered(sympy.Gt)),
    aten.gt.Scalar: _pointwise(_ordered(sympy.Gt)),
    aten.ge.Tensor: _pointwise(_ordered(sympy.Ge)),
    aten.ge.Scalar: _pointwise(_ordered(sympy.Ge)),
    aten.eq.Tensor: _pointwise(_ordered(sympy.Eq)),
    aten.eq.Scalar: _pointwise(_ordered(sympy.Eq)),
    aten.ne.Tensor: _pointwise(_ordered(sympy.Ne)),
    aten.ne.Scalar: _pointwise(_ordered(sympy.Ne)),
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
    aten._to_copy.default: same,
    aten.to.dtype: same,
    aten.clone.default: same,
    aten.alias.default: same,
    aten.contiguous.default: same,
    aten.detach.default: same,
    aten.lift_fresh_copy.default: same,
}
"""Formula rule of each op that index arithmetic is made of."""
