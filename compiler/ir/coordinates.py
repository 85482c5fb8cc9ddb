"""What a tensor holds as a formula of where you look: abstract evaluation of index arithmetic.

Masks, biases and positions are computed from `arange`, constants and sizes. Evaluated on coordinates instead of
numbers, such a subgraph gives, for any element, a sympy formula of its index: `arange` is a coordinate, views move
coordinates, comparisons build a predicate. What depends on token values or is no index arithmetic has no formula.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanAtom, BooleanFunction
from torch import fx
from torch.utils._sympy.symbol import SymT, symbol_is_type

from llmc.ir.mask import LENGTH
from llmc.ir.model import Model
from llmc.ir.weights import Constant, Weight

aten = torch.ops.aten

Index = tuple[sympy.Expr, ...]
At = Callable[[Index], sympy.Basic]

INFINITE = sympy.Symbol("hidden", real=True)
"""The value of a masked score: minus infinity, or a number so low that it means the same."""

_HIDDEN_BELOW = -1e4
"""Additive masks write minus infinity, the dtype's minimum, or 'large' numbers; exp(-1e4) is 0 in every dtype."""


_SMALL_TABLE = 16 << 20
"""Bytes up to which a table is looked into for a line."""


@dataclass(frozen=True)
class Formula:
    """A tensor as a function from an index to a formula; `shape` in sympy, the trace's length being `mask.LENGTH`."""

    shape: tuple[sympy.Expr, ...]
    at: At

    def broadcast_at(self, index: Index) -> sympy.Basic:
        """The formula at an index of a tensor that this one is broadcast to."""
        own = index[len(index) - len(self.shape) :]
        return self.at(tuple(sympy.S.Zero if size == 1 else i for size, i in zip(self.shape, own, strict=True)))


def constant(value: sympy.Basic) -> Formula:
    """A tensor without dimensions that holds `value`."""
    return Formula((), lambda _: value)


def number(value: float | int | bool) -> sympy.Basic:
    """A Python number as a formula."""
    if isinstance(value, bool):
        return sympy.true if value else sympy.false
    if isinstance(value, int):
        return sympy.Integer(value)
    if value <= _HIDDEN_BELOW:
        return INFINITE
    return sympy.Integer(int(value)) if value == int(value) else sympy.Float(value)


def choose(condition: sympy.Basic, then: sympy.Basic, other: sympy.Basic) -> sympy.Basic:
    """`then` where `condition` holds, else `other`."""
    if then == other or condition == sympy.true:
        return then
    if condition == sympy.false:
        return other
    if _is_predicate(then) or _is_predicate(other):
        return sympy.Or(sympy.And(condition, as_predicate(then)), sympy.And(sympy.Not(condition), as_predicate(other)))
    return sympy.Piecewise((then, condition), (other, True))


def _is_predicate(value: sympy.Basic) -> bool:
    # Not `Boolean`: sympy's symbols are of that class too.
    return isinstance(value, (Relational, BooleanFunction, BooleanAtom))


def as_predicate(value: sympy.Basic) -> sympy.Basic:
    """The truth of a value, as torch's conversion to bool gives it."""
    if _is_predicate(value):
        return value
    if value == INFINITE:
        return sympy.true
    if isinstance(value, sympy.Piecewise):
        result: sympy.Basic = as_predicate(value.args[-1][0])
        for branch, condition in reversed(value.args[:-1]):
            result = choose(condition, as_predicate(branch), result)
        return result
    return sympy.Ne(value, 0)


def as_number(value: sympy.Basic) -> sympy.Basic:
    """A predicate as 0 or 1; numbers stay."""
    return choose(value, sympy.S.One, sympy.S.Zero) if _is_predicate(value) else value


Rule = Callable[["Coordinates", fx.Node], At | None]
"""The formula of a node's result, given that all its tensor operands have one; None when it has none."""


@dataclass
class Coordinates:
    """Evaluates the nodes of one model on coordinates, each node once."""

    model: Model
    rules: Mapping[object, "Rule"]
    """How each op acts on coordinates: `llmc.ir.coordinate_rules.RULES`."""
    tables: dict[str, fx.Node] = field(default_factory=dict)
    """Weights that formulas refer to as functions of an index, by the function's name."""
    found: dict[fx.Node, Formula | None] = field(default_factory=dict)

    def of(self, node: fx.Node) -> Formula | None:
        """The formula of a node, or None when it has none."""
        order = [node]
        while order:
            current = order[-1]
            if current in self.found:
                order.pop()
                continue
            missing = [source for source in current.all_input_nodes if source not in self.found]
            if missing and current.op == "call_function":
                order.extend(missing)
                continue
            self.found[current] = self._evaluate(current)
            order.pop()
        return self.found[node]

    def size(self, value: object) -> sympy.Expr:
        """A size (an int, a SymInt or its node) as a formula of the length."""
        if isinstance(value, fx.Node):
            value = value.meta["val"]
        if isinstance(value, torch.SymInt):
            expression = sympy.sympify(value.node.expr)
            known = {symbol for symbol in expression.free_symbols if not symbol_is_type(symbol, SymT.UNBACKED_INT)}
            return expression.subs({symbol: LENGTH for symbol in known})
        return sympy.sympify(value)

    def shape(self, node: fx.Node) -> tuple[sympy.Expr, ...]:
        """The sizes of a tensor node as formulas of the length."""
        return tuple(self.size(size) for size in node.meta["val"].shape)

    def _evaluate(self, node: fx.Node) -> Formula | None:
        value = node.meta.get("val")
        if node.op == "placeholder":
            return self._weight(node) if self.model.is_weight(node) else None
        if node.op != "call_function":
            return None
        if isinstance(value, (torch.SymInt, int)) and not isinstance(value, bool):
            return constant(self.size(value))
        if not isinstance(value, torch.Tensor):
            return None
        rule = self.rules.get(node.target)
        if rule is None:
            return None
        operands = [arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), torch.Tensor)]
        if node.target not in _SHAPE_ONLY and any(self.found[arg] is None for arg in operands):
            return None
        at = rule(self, node)
        if at is None:
            return None
        return Formula(self.shape(node), _cast(at, value.dtype))

    def _weight(self, node: fx.Node) -> Formula:
        name = f"w_{node.name}"
        self.tables[name] = node
        shape = self.shape(node)
        weight = self.model.weights[node.name]
        if shape == () and weight.nbytes <= 8:
            return constant(number(weight.evaluate().item()))
        cells: list[At] = []

        def at(index: Index) -> sympy.Basic:
            if not cells:  # looked into when first asked: most weights are no part of any formula
                cells.append(self._cells(node, weight, sympy.Function(name)))
            return cells[0](index)

        return Formula(shape, at)

    def _cells(self, node: fx.Node, weight: Weight, function: Callable[..., sympy.Basic]) -> At:
        """A weight as a formula of the index: a band or a line where it is one, else a table."""
        rank = len(weight.shape)
        if rank >= 2 and weight.dtype in (torch.bool, torch.uint8) and weight.shape[-1] == weight.shape[-2]:
            band = _band(weight.evaluate())
            if band is not None:
                low, high = band
                return lambda index: sympy.And(_at_least(index, low), _below(index, high))
        if rank and weight.dtype.is_floating_point and weight.shape[-1] >= 3 and weight.nbytes <= _SMALL_TABLE:
            line = _line(weight.evaluate())
            if line is not None:
                start, step = (
                    self._table(node, part, tensor) for part, tensor in zip(("start", "step"), line, strict=True)
                )
                return lambda index: start(*index[:-1]) + step(*index[:-1]) * index[-1]
        return lambda index: function(*index)

    def _table(self, like: fx.Node, part: str, tensor: torch.Tensor) -> Callable[..., sympy.Basic]:
        """A new weight as a function in formulas; it goes again with the unused weights if no formula keeps it."""
        if tensor.dim() == 0:
            only = sympy.Float(float(tensor))
            return lambda: only
        with like.meta["val"].fake_mode as mode:
            value = mode.from_tensor(tensor)
        node = self.model.add_weight(f"{like.name}_{part}", Constant(tensor, f"{like.name}.{part}"), value)
        name = f"w_{node.name}"
        self.tables[name] = node
        function: Callable[..., sympy.Basic] = sympy.Function(name)
        return function

    def operand(self, value: object) -> Formula:
        """An argument of an op as a formula: a node's, or a number's."""
        if isinstance(value, fx.Node):
            formula = self.found[value]
            assert formula is not None, f"{value.name} has no formula"
            return formula
        assert isinstance(value, (bool, int, float)), f"expected a tensor or a number, got {value!r}"
        return constant(number(value))


def _line(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(start, step) such that table[..., j] = start[...] + step[...] * j, as ALiBi tables are; None for no line."""
    wide = table.double()
    start, step = wide[..., 0], (wide[..., -1] - wide[..., 0]) / (table.shape[-1] - 1)  # two neighbours are rounded
    line = start[..., None] + step[..., None] * torch.arange(table.shape[-1])
    if not torch.allclose(wide, line, rtol=1e-6, atol=1e-6 * float(wide.abs().max())):
        return None
    return start.to(table.dtype), step.to(table.dtype)


def _at_least(index: Index, low: int | None) -> sympy.Basic:
    return sympy.true if low is None else sympy.Ge(index[-2] - index[-1], low)


def _below(index: Index, high: int | None) -> sympy.Basic:
    return sympy.true if high is None else sympy.Lt(index[-2] - index[-1], high)


def _band(table: torch.Tensor) -> tuple[int | None, int | None] | None:
    """Bounds (low, high) such that table[..., i, j] is true exactly where low <= i - j < high; None for no band."""
    square = table.reshape(-1, *table.shape[-2:]).bool()
    if not torch.equal(square, square[:1].expand_as(square)):
        return None
    size = square.shape[-1]
    index = torch.arange(size)
    distance = index[:, None] - index[None, :]
    kept = distance[square[0]]
    if kept.numel() == 0:
        return None
    low, high = int(kept.min()), int(kept.max()) + 1
    if not torch.equal(square[0], (distance >= low) & (distance < high)):
        return None
    return (None if low == 1 - size else low), (None if high == size else high)


def _cast(at: At, dtype: torch.dtype) -> At:
    if dtype == torch.bool:
        return lambda index: as_predicate(at(index))
    return lambda index: as_number(at(index))


_SHAPE_ONLY: set[object] = {
    aten.full_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.new_full.default,
}
"""Ops whose result depends on the shape of their tensor argument alone."""


def sequence(value: object) -> Sequence[object]:
    """A list argument of a node as a sequence."""
    assert isinstance(value, (list, tuple)), f"expected a list argument, got {value!r}"
    return value
