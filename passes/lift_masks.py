"""Lift attention masks out of the graph: from a tensor over [queries, keys] to a formula of positions.

The subgraph that computes a mask or an additive bias is evaluated on symbolic coordinates (`llmc.ir.coordinates`). What
comes out is split into a predicate (may this query see this key) and a bias (what is added to the score), for example
`(k <= q) & (q - k < 4096)` and `t0[h] * k`. Both must be free of the sequence's length, so that they mean the same when
tokens arrive one by one. Each formula is proved against the tensor it replaces, at small sizes and around every
constant it holds.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import sympy
import torch
from torch import Tensor, fx

from llmc.errors import UnsupportedModel
from llmc.ir.coordinate_rules import RULES
from llmc.ir.coordinates import INFINITE, Coordinates
from llmc.ir.evaluate import evaluate_at_length
from llmc.ir.mask import HEAD, KEY, LENGTH, QUERY, canonical, evaluate, text_of
from llmc.ir.model import Model
from llmc.ir.prove import Disproved
from llmc.ir.rewrite import Rewriter

ATTENTION = torch.ops.llmc.attention.default
MASKED = torch.ops.llmc.masked_attention.default

_SIZES = (1, 2, 5, 17)
_LARGEST = 4200
"""Tokens at most in a proof around a window's edge: a mask of 4200² is 17 million elements, a tenth of a second."""


@dataclass(frozen=True)
class Lifted:
    """A mask as formulas; `tables` are the weights that `t0`, `t1`, ... stand for."""

    mask: str
    bias: str
    tables: tuple[fx.Node, ...]

    @property
    def per_head(self) -> bool:
        """Whether it differs from head to head."""
        return re.search(r"\bh\b", f"{self.mask} {self.bias}") is not None


@dataclass(frozen=True)
class LiftMasks:
    """Make every `attention` a `masked_attention` whose mask and bias are formulas."""

    name: ClassVar[str] = "lift_masks"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Lift all masks; return how many.

        Raises:
            UnsupportedModel: a mask depends on token values, on the sequence's length, or on ops without a formula.
            BuildFailed: a formula does not give the mask it stands for.
        """
        coordinates = Coordinates(model, RULES)
        known: dict[tuple[object, ...], Lifted] = {}
        proved: set[tuple[object, ...]] = set()
        changes = 0
        for node in model.calls(ATTENTION):
            if rewriter.stopped:
                return changes
            mask, sinks, causal = node.args[3], node.args[4], bool(node.args[7])
            key = (mask, causal, node.args[0].meta["val"].shape[1], sinks is not None)  # type: ignore[union-attr]
            if key not in known:
                known[key] = lift(coordinates, node)

            def proof(node: fx.Node = node, key: tuple[object, ...] = key) -> float:
                if key not in proved:
                    _prove(model, node, known[key])
                    proved.add(key)
                return 0.0

            inputs = list(dict.fromkeys([*node.all_input_nodes, *known[key].tables]))
            changes += rewriter.replace(self.name, inputs, [node], _replacement(node, inputs, known[key]), proof=proof)
        return changes


def _replacement(node: fx.Node, inputs: list[fx.Node], lifted: Lifted) -> Callable[..., object]:
    def build(*values: object) -> object:
        of: dict[object, object] = dict(zip(inputs, values, strict=True))
        q, k, v, _, sinks, scale, softcap, _ = (of.get(arg, arg) for arg in node.args)
        tables = [of[table] for table in lifted.tables]
        return MASKED(q, k, v, sinks, tables, lifted.mask, lifted.bias, scale, softcap)

    return build


def lift(coordinates: Coordinates, node: fx.Node) -> Lifted:
    """The mask, bias and causal flag of an `attention` node as formulas."""
    mask, sinks, causal = node.args[3], node.args[4], bool(node.args[7])
    predicate: sympy.Basic = sympy.Le(KEY, QUERY) if causal else sympy.true
    bias: sympy.Basic = sympy.S.Zero
    where = f"{node.name} ({node.meta['origin']})"
    if isinstance(mask, fx.Node):
        formula = coordinates.of(mask)
        if formula is None:
            raise UnsupportedModel(
                f"the mask of {where} is not index arithmetic: {_first_unknown(coordinates, mask)}; expected a mask "
                "that depends on positions alone"
            )
        rank = len(formula.shape)
        value = formula.broadcast_at((sympy.S.Zero, HEAD, QUERY, KEY)[4 - rank :])
        if mask.meta["val"].dtype == torch.bool:
            predicate = sympy.And(predicate, value)
        else:
            seen, bias = split(value)
            predicate = sympy.And(predicate, seen)
    predicate = canonical(_plain(predicate))
    bias = _without_row_terms(bias, keep=sinks is not None)
    for kind, expression in (("mask", predicate), ("bias", bias)):
        strange = sorted(str(symbol) for symbol in expression.free_symbols - {QUERY, KEY, HEAD})
        if strange:
            reason = "the length of the sequence" if LENGTH in expression.free_symbols else ", ".join(strange)
            raise UnsupportedModel(
                f"the {kind} of {where} depends on {reason}: {expression}; expected a function of the positions of "
                "query and key"
            )
    names = sorted({call.func.__name__ for call in _calls(predicate) | _calls(bias)})
    renamed = {name: f"t{i}" for i, name in enumerate(names)}
    predicate, bias = _rename(predicate, renamed), _rename(bias, renamed)
    return Lifted(text_of(predicate), text_of(bias), tuple(coordinates.tables[name] for name in names))


def split(value: sympy.Basic) -> tuple[sympy.Basic, sympy.Basic]:
    """An additive mask as (predicate, bias): hidden where the value holds minus infinity."""
    value = sympy.piecewise_fold(sympy.expand(value))
    if isinstance(value, sympy.Piecewise):
        predicate: sympy.Basic = sympy.false
        biases: list[tuple[sympy.Basic, sympy.Basic]] = []
        rest: sympy.Basic = sympy.true
        for branch, condition in value.args:
            reached = sympy.And(rest, condition)
            rest = sympy.And(rest, sympy.Not(condition))
            if INFINITE in branch.free_symbols:
                continue
            predicate = sympy.Or(predicate, reached)
            biases.append((branch, condition))
        if not biases:
            return sympy.false, sympy.S.Zero
        if len({branch for branch, _ in biases}) == 1:
            return predicate, biases[0][0]
        return predicate, sympy.Piecewise(*biases[:-1], (biases[-1][0], True))
    if INFINITE in value.free_symbols:
        return sympy.false, sympy.S.Zero
    return sympy.true, value


def _plain(predicate: sympy.Basic) -> sympy.Basic:
    if predicate in (sympy.true, sympy.false):
        return predicate
    if len(predicate.atoms(sympy.core.relational.Relational)) <= 6:
        return sympy.simplify_logic(predicate, form="cnf", force=True)
    return predicate


def _without_row_terms(bias: sympy.Basic, *, keep: bool) -> sympy.Basic:
    # softmax(x + c) = softmax(x): a term that is the same for all keys of a row does nothing (but next to a sink).
    if keep:
        return bias
    return sympy.Add(*(term for term in sympy.Add.make_args(sympy.expand(bias)) if KEY in term.free_symbols))


def _calls(expression: sympy.Basic) -> set[sympy.Basic]:
    found: set[sympy.Basic] = expression.atoms(sympy.core.function.AppliedUndef)
    return found


def _rename(expression: sympy.Basic, names: dict[str, str]) -> sympy.Basic:
    return expression.replace(
        lambda part: isinstance(part, sympy.core.function.AppliedUndef),
        lambda part: sympy.Function(names[part.func.__name__])(*part.args),
    )


def _first_unknown(coordinates: Coordinates, node: fx.Node) -> str:
    """The first op above `node` that has no formula though its operands do, for an error message."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        missing = [
            source for source in current.all_input_nodes if coordinates.of(source) is None and source not in seen
        ]
        seen.update(missing)
        if not missing:
            return f"{current.target} at {current.meta.get('origin')}"
        stack.extend(missing)
    return str(node)


def _prove(model: Model, node: fx.Node, lifted: Lifted) -> None:
    mask, sinks, causal = node.args[3], node.args[4], bool(node.args[7])
    heads = int(node.args[0].meta["val"].shape[1])  # type: ignore[union-attr]
    tables = [model.weights[table.name].evaluate() for table in lifted.tables]
    for size in _sizes(lifted.mask):
        expected = (
            evaluate_at_length(model, mask, size) if isinstance(mask, fx.Node) else torch.ones(1, dtype=torch.bool)
        )
        alike = not lifted.tables and lifted.bias == "0" and (expected.dim() < 3 or expected.shape[-3] == 1)
        shape = (1, 1 if alike else heads, size, size)
        found = _as_scores(lifted, tables, size, heads)
        if not _same(_scores(expected, causal, shape), found.expand(shape), invariant=sinks is None):
            raise Disproved(
                f"mask {lifted.mask!r} with bias {lifted.bias!r} is not the mask of the model at {size} tokens"
            )


def _sizes(mask: str) -> Sequence[int]:
    edges: set[int] = set(_SIZES)
    for word in "".join(letter if letter.isdigit() else " " for letter in mask).split():
        edges.update(size for size in (int(word) - 1, int(word), int(word) + 2) if 0 < size <= _LARGEST)
    return sorted(edges)


def _scores(mask: Tensor, causal: bool, shape: tuple[int, ...]) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    scores = mask.float().masked_fill(mask <= -1e4, -torch.inf).expand(shape)
    if causal:
        scores = scores.masked_fill(torch.ones(shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores


def _as_scores(lifted: Lifted, tables: list[Tensor], size: int, heads: int) -> Tensor:
    at = torch.arange(size)
    few = heads if lifted.per_head else 1
    place = at[None, :, None], at[None, None, :], torch.arange(few)[:, None, None]
    scores = evaluate(lifted.bias, *place, tables, torch.float32).float().expand(few, size, size)
    return scores.masked_fill(~evaluate(lifted.mask, *place, tables, torch.float32), -torch.inf)[None]


def _same(expected: Tensor, found: Tensor, *, invariant: bool) -> bool:
    if not torch.equal(expected == -torch.inf, found == -torch.inf):
        return False
    if invariant:  # rows may differ by a constant
        expected, found = (scores - scores.amax(-1, keepdim=True) for scores in (expected, found))
    seen = expected.isfinite()
    return torch.allclose(expected[seen], found[seen], rtol=1e-5, atol=1e-5)
