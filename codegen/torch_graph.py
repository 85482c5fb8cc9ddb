"""Some nodes of a graph as a graph of their own, whose names do not tell which layer they are of."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx, nn

from llmc.codegen.layout import Scalar
from llmc.codegen.unlowered import Unlowered
from llmc.ir.model import Origin
from llmc.ir.show import type_text

_SIZES = frozenset({operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod})


def own_graph(
    nodes: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    numbers: Mapping[fx.Node, Scalar],
    results: Sequence[fx.Node],
    letters: Mapping[sympy.Symbol, str],
) -> fx.GraphModule:
    """A graph that computes `nodes`, in this order, and returns a tuple of `results`.

    It is given `inputs`, then the number of rows if a node asks for it; `numbers` are tensors of one number everywhere,
    which it makes itself. Nodes have `meta["type"]`, in which sizes are spelled with `letters`. Raises `Unlowered` for
    sizes that are computed in an unknown way.
    """
    copy = _Copy(numbers, letters)
    for node in inputs:
        copy.add_input(node)
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), copy.value)
        copy.made[node] = copy.call(node.target, args, kwargs, node.meta["val"])
    copy.graph.output(tuple(copy.made[node] for node in results))
    for place, node in enumerate(node for node in copy.graph.nodes if node.op == "call_function"):
        node.name = f"n{place}"
    return fx.GraphModule(nn.Module(), copy.graph)


class _Copy:
    def __init__(self, numbers: Mapping[fx.Node, Scalar], letters: Mapping[sympy.Symbol, str]) -> None:
        self.graph = fx.Graph()
        self.made: dict[fx.Node, fx.Node] = {}
        self._numbers, self._letters = numbers, letters
        self._last_input: fx.Node | None = None
        self._rows: fx.Node | None = None

    def add_input(self, node: fx.Node) -> None:
        """A tensor that is given; all are added before anything is computed."""
        placeholder = self.graph.placeholder(f"x{len(self.made)}")
        self._last_input = self.made[node] = self._typed(placeholder, node.meta["val"])

    def value(self, node: fx.Node) -> Any:  # noqa: ANN401 - a node, or a size that is known
        """What stands for an argument."""
        if node in self.made:
            return self.made[node]
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return self._size_of(node)
        shape = [self._size(length, node) for length in value.shape]
        number = self._numbers[node].value
        full = self.call(torch.ops.aten.full.default, (shape, number), {"dtype": value.dtype}, value)
        return self.made.setdefault(node, full)

    def call(self, target: Any, args: Any, kwargs: Any, value: object) -> fx.Node:  # noqa: ANN401 - as fx has them
        """A node that computes."""
        return self._typed(self.graph.call_function(target, args, kwargs), value)

    def _size_of(self, node: fx.Node) -> Any:  # noqa: ANN401 - a number or a node
        value = node.meta["val"]
        if isinstance(value, int) or value.node.expr.is_Integer or value.node.expr in self._letters:
            return self._size(value, node)
        if node.target not in _SIZES:
            raise Unlowered(node, f"is a size that {node.target} computes", final=True)
        args = [self._size_of(arg) if isinstance(arg, fx.Node) else self._size(arg, node) for arg in node.args]
        return self.call(node.target, tuple(args), {}, value)

    def _size(self, value: object, node: fx.Node) -> Any:  # noqa: ANN401 - a number or a node
        if not isinstance(value, torch.SymInt):
            return value
        expression = value.node.expr
        if expression.is_Integer:
            return int(expression)
        if expression not in self._letters:
            raise Unlowered(node, f"has a size of {value}", final=True)
        if self._rows is None:
            before = self._last_input
            with self.graph.inserting_before() if before is None else self.graph.inserting_after(before):
                self._rows = self._typed(self.graph.placeholder("count"), value)
        return self._rows

    def _typed(self, node: fx.Node, value: object) -> fx.Node:
        node.meta.update(type=type_text(value, self._letters), origin=Origin())
        return node
