"""Loops in the packed graphs of real families, with one item for each node."""

import pytest
import torch
from torch import fx
from torch.utils._pytree import tree_map

import llmc
from llmc.codegen.arrange import arrange
from llmc.codegen.repeats import Item, find_loops
from llmc.ir.model import Model
from llmc.zoo.families import tiny

IN_PLACE = {torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor}


def graph_items(model: Model) -> list[Item]:
    items = []
    for node in model.calls():
        inputs: list[str] = []
        weights: list[str] = []
        caches: list[str] = []

        def kind(arg: object, read: tuple[list[str], ...] = (inputs, weights, caches)) -> object:
            if not isinstance(arg, fx.Node):
                return str(arg)
            number = 1 if model.is_weight(arg) else 2 if "_cache_" in arg.name else 0
            read[number].append(arg.name)
            return number, tuple(map(str, arg.meta["val"].shape)) if number else ""

        key = str(tree_map(kind, (node.args, dict(node.kwargs))))
        over = [(node.name, name) for name in inputs] if node.target in IN_PLACE else []
        items.append(
            Item((str(node.target), key), tuple(inputs), (node.name,), tuple(weights), tuple(caches), tuple(over))
        )
    return items


KINDS = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]


@pytest.mark.parametrize(
    ("family", "changes", "layers", "counts"),
    [("llama", {"num_hidden_layers": 3}, 1, 3), ("gemma3_text", {"num_hidden_layers": 5, "layer_types": KINDS}, 2, 2)],
)
def test_layers_are_found(family: str, changes: dict[str, object], layers: int, counts: int) -> None:
    model = llmc.compile(tiny(family, **changes), prove=False)._build.model  # type: ignore[union-attr]
    items = graph_items(model)
    results = [node.name for node in model.graph.output_node().args[0]]
    order, loops = arrange(items, results)
    assert sorted(order) == list(range(len(items)))
    assert loops == find_loops([items[number] for number in order], results)
    (loop,) = loops
    assert loop.count == counts
    assert len(loop.carried) == 1
    names = [name for weights in loop.weights for name in weights]
    assert len(set(names)) == len(names)
    assert [len(caches) for caches in loop.caches] == [2 * layers] * counts
