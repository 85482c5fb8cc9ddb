"""Running a graph in eager torch: the meaning of every graph, node by node."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from llmc.errors import BadInput
from llmc.ir.model import Model

Call = Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any]
"""How to compute a node from the values of its arguments."""


def interpret(model: Model, inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """The outputs of `model` for `inputs`, one for each input placeholder; an argument that is written is changed.

    Each weight is evaluated when it is first needed; every value is dropped after its last use.
    Raises `BadInput` when the number of inputs is wrong.
    """
    expected = model.inputs()
    if len(inputs) != len(expected):
        names = ", ".join(node.name for node in expected)
        raise BadInput(f"the model takes {len(expected)} inputs ({names}); {len(inputs)} were given")
    given = {node.name: value for node, value in zip(expected, inputs, strict=True)}

    def load(node: fx.Node) -> Any:  # noqa: ANN401 - a tensor or a size
        return given[node.name] if node.name in given else model.weights[node.name].evaluate()

    return run_graph(model.graph, load)


def run_graph(graph: fx.Graph, load: Callable[[fx.Node], Any], call: Call | None = None) -> tuple[Any, ...]:
    """Run `graph` and return its outputs as a tuple.

    `load` gives the value of a placeholder, when first needed; `call` computes a node (its target, by default).
    """
    last_use = _last_uses(graph)
    values: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:  # noqa: ANN401 - a tensor, a size, or a tuple of them
        if node not in values and node.op == "placeholder":
            values[node] = load(node)
        return values[node]

    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "placeholder":
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), value)
            if node.op == "output":
                return tuple(args[0]) if isinstance(args[0], (tuple, list)) else (args[0],)
            values[node] = node.target(*args, **kwargs) if call is None else call(node, args, kwargs)
            del args, kwargs
            for done in last_use.get(node, ()):
                del values[done]
    raise AssertionError("a graph ends with its output")


def _last_uses(graph: fx.Graph) -> Mapping[fx.Node, list[fx.Node]]:
    """The values that nothing needs any more once the key has run."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
        if node.op == "call_function" and not node.users:
            last[node] = node
    by_user: dict[fx.Node, list[fx.Node]] = {}
    for source, user in last.items():
        if user.op == "call_function":
            by_user.setdefault(user, []).append(source)
    return by_user
