"""What is computed from weights alone becomes a weight: a recipe, evaluated when the artifact is written."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch._ops import OpOverload

from llmc.ir.infer import fake_mode
from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.ir.sizes import number
from llmc.ir.subgraph import has_side_effects
from llmc.ir.tracing import short_name
from llmc.ir.weights import Constant, Expr, Weight

aten = torch.ops.aten

SMALL = 1 << 20
"""Bytes below which a constant is worth storing whatever it is computed from, and cheap enough to compute at once."""

_COMPUTED_ANYWAY = frozenset({aten.expand.default, aten.full.default, aten.empty.memory_format})
"""Ops whose result is larger than what it says: they stay in the graph, where a kernel reads through them."""


@dataclass(frozen=True)
class FoldConstants:
    """Turn every computation on weights and constants into a lazy recipe (`llmc.ir.weights.Expr`).

    Only where the result is not larger than what it is made from, or at most `SMALL`. Nothing of the checkpoint is
    read; a constant of the model's own code (an `arange` of known length) is computed at once.
    """

    name: ClassVar[str] = "fold_constants"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Fold everything that can be; return the number of weights made."""
        mode = fake_mode(model.graph)
        recipes: dict[fx.Node, Weight] = {}
        for node in model.placeholders():
            if node.name in model.weights:
                recipes[node] = model.weights[node.name]
        made = 0
        for node in model.calls():
            recipe = _recipe(node, recipes)
            if recipe is not None:
                recipes[node] = recipe
        for node in model.calls():
            if node not in recipes or all(user in recipes for user in node.users):
                continue
            weight = recipes[node]
            placeholder = model.add_weight(_name(model, node), weight, weight.fake(mode))
            node.replace_all_uses_with(placeholder)
            made += 1
        model.graph.eliminate_dead_code()
        model.drop_unused_weights()
        return made


def _recipe(node: fx.Node, recipes: dict[fx.Node, Weight]) -> Weight | None:
    """The recipe of what `node` computes; None when it is no constant or not worth storing."""
    value = node.meta.get("val")
    if node.target is operator.getitem:
        return _part(node, recipes)
    if not isinstance(node.target, OpOverload) or not isinstance(value, torch.Tensor):
        return None
    if node.target in _COMPUTED_ANYWAY or has_side_effects(node) or _is_random(node.target):
        return None
    return _expression(node, node.target, node, recipes, None)


def _part(node: fx.Node, recipes: dict[fx.Node, Weight]) -> Weight | None:
    """One of several results of a call."""
    whole, index = node.args
    if not isinstance(whole, fx.Node) or not isinstance(index, int) or not isinstance(whole.target, OpOverload):
        return None
    return _expression(node, whole.target, whole, recipes, index)


def _expression(
    node: fx.Node, target: OpOverload, call: fx.Node, recipes: dict[fx.Node, Weight], output: int | None
) -> Weight | None:
    value: torch.Tensor = node.meta["val"]
    shape = [size for size in map(number, value.shape) if size is not None]
    if len(shape) < value.dim() or not all(_is_constant(source, recipes) for source in call.all_input_nodes):
        return None
    args, kwargs = _filled_in(call.args, recipes), _filled_in(call.kwargs, recipes)
    expression = Expr(target, args, kwargs, tuple(shape), value.dtype, output=output)
    if expression.nbytes > max(SMALL, sum(weight.nbytes for weight in expression.inputs())):
        return None
    if expression.nbytes <= SMALL and all(isinstance(weight, (Constant, Expr)) for weight in expression.walk()):
        return Constant(expression.evaluate().clone(memory_format=torch.contiguous_format))
    return expression


def _is_constant(node: fx.Node, recipes: dict[fx.Node, Weight]) -> bool:
    return node in recipes or (node.target is aten.full.default and not node.all_input_nodes)


def _filled_in(value: Any, recipes: dict[fx.Node, Weight]) -> Any:  # noqa: ANN401 - any argument of a call
    """`value` with every node in it replaced by its recipe."""
    if isinstance(value, fx.Node):
        return _of(value, recipes)
    if isinstance(value, (list, tuple)):
        return tuple(_filled_in(item, recipes) for item in value)
    if isinstance(value, dict):
        return {name: _filled_in(item, recipes) for name, item in value.items()}
    return value


def _of(node: fx.Node, recipes: dict[fx.Node, Weight]) -> Weight:
    """The recipe of an input; a fill stays in the graph, so it has one only here."""
    if node in recipes:
        return recipes[node]
    value: torch.Tensor = node.meta["val"]
    return Expr(aten.full.default, node.args, node.kwargs, tuple(int(size) for size in value.shape), value.dtype)


def _is_random(target: OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in target.tags


def _name(model: Model, node: fx.Node) -> str:
    """The weight's own name and what was done to it, when it comes from one weight; the node's name otherwise."""
    sources = list(dict.fromkeys(_weights_of(model, node)))
    if len(sources) != 1 or isinstance(model.weights[sources[0].name], Constant):
        return node.name
    return f"{sources[0].name}_{short_name(node.target)}"


def _weights_of(model: Model, node: fx.Node) -> Iterator[fx.Node]:
    if model.is_weight(node):
        yield node
    for source in node.all_input_nodes:
        yield from _weights_of(model, source)
