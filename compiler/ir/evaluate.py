"""Run one node of a model, and what it depends on, in eager torch at a chosen length."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from llmc.ir.model import Model


def evaluate_at_length(model: Model, node: fx.Node, length: int) -> torch.Tensor:
    """The value of `node` for `length` tokens (all of id 0), with the model's real weights where it reads any."""
    needed = ancestors(node)
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for current in model.graph.nodes:
            if current not in needed:
                continue
            if current.op == "placeholder":
                values[current] = _given(model, current, length)
            else:
                function: Callable[..., Any] = current.target
                args = fx.node.map_arg(current.args, values.__getitem__)
                kwargs = fx.node.map_arg(current.kwargs, values.__getitem__)
                values[current] = function(*args, **kwargs)
    result = values[node]
    assert isinstance(result, torch.Tensor), f"{node.name} is {type(result).__name__}, expected a tensor"
    return result


def ancestors(node: fx.Node) -> set[fx.Node]:
    """`node` and every node that it depends on."""
    found = {node}
    stack = [node]
    while stack:
        fresh = [source for source in stack.pop().all_input_nodes if source not in found]
        found.update(fresh)
        stack.extend(fresh)
    return found


def _given(model: Model, node: fx.Node, length: int) -> torch.Tensor:
    if model.is_weight(node):
        return model.weights[node.name].evaluate()
    value = node.meta["val"]
    sizes = [length if isinstance(size, torch.SymInt) else int(size) for size in value.shape]
    return torch.zeros(sizes, dtype=value.dtype)
