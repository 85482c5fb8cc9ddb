"""What is computed twice is computed once."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx
from torch._ops import OpOverload

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.ir.subgraph import has_side_effects


@dataclass(frozen=True)
class EliminateCommon:
    """Let equal calls, and weights of equal recipes, share one node: the first one."""

    name: ClassVar[str] = "eliminate_common"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Merge everything that is equal; return the number of nodes removed."""
        first: dict[object, fx.Node] = {}
        removed = 0
        for node in model.placeholders():
            if node.name in model.weights:
                removed += _merge(node, ("weight", model.weights[node.name]), first)
        for node in model.calls():
            if _is_pure(node):
                removed += _merge(node, (node.target, _key(node.args), _key(node.kwargs)), first)
        model.drop_unused_weights()
        return removed


def _merge(node: fx.Node, key: object, first: dict[object, fx.Node]) -> int:
    earlier = first.setdefault(key, node)
    if earlier is node:
        return 0
    node.replace_all_uses_with(earlier)
    if node.op == "call_function":
        node.graph.erase_node(node)
    return 1


def _is_pure(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return True
    return not has_side_effects(node) and torch.Tag.nondeterministic_seeded not in node.target.tags


def _key(value: object) -> object:
    """Arguments as a hashable value that tells 1 from 1.0 and True, and takes lists for tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in sorted(value.items()))
    return (type(value), repr(value)) if isinstance(value, float) else (type(value), value)
