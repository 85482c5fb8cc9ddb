"""Running graphs node by node."""

from collections.abc import Collection

import pytest
import torch
from support.check_pass import trace
from torch import Tensor, nn

from llmc.errors import BadInput
from llmc.ir.interpret import interpret, run_graph
from llmc.ir.weights import Source


class Reader:
    """A checkpoint that logs what is read."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.log: list[str] = []

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def key(self, name: str) -> str:
        return name

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].dtype

    def read(self, key: str) -> Tensor:
        self.log.append(key)
        return self.tensors[key]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_the_graph_computes_what_the_module_does() -> None:
    module, x = Two(), torch.randn(5, 8)
    model = trace(module, torch.randn(3, 8), dynamic={0: [0]})
    (y,) = interpret(model, [x])
    torch.testing.assert_close(y, module(x).detach())


def test_each_weight_is_read_once_and_only_when_it_is_needed() -> None:
    module = Two()
    model = trace(module, torch.randn(3, 8), dynamic={0: [0]})
    reader = Reader(dict(module.state_dict()))
    for name, weight in model.weights.items():
        model.weights[name] = Source.of(reader, weight.name)
    seen: list[list[str]] = []

    def call(node, args, kwargs):
        seen.append(list(reader.log))
        return node.target(*args, **kwargs)

    x = torch.randn(3, 8)
    run_graph(model.graph, lambda node: x if node.name == "x" else model.weights[node.name].evaluate(), call)
    assert seen == [
        ["first.weight", "first.bias"],
        ["first.weight", "first.bias"],
        ["first.weight", "first.bias", "second.weight", "second.bias"],
    ]


def test_values_are_dropped_after_their_last_use() -> None:
    import weakref

    model = trace(lambda x: torch.cos(torch.sin(torch.relu(x))), torch.randn(3))
    alive: list[weakref.ref[Tensor]] = []
    living: list[int] = []

    def call(node, args, kwargs):
        living.append(sum(ref() is not None for ref in alive))
        value = node.target(*args, **kwargs)
        alive.append(weakref.ref(value))
        return value

    x = torch.randn(3)
    run_graph(model.graph, lambda node: x, call)
    assert living == [0, 1, 1]


def test_a_wrong_number_of_inputs_is_refused_with_their_names() -> None:
    model = trace(lambda x, y: x + y, torch.randn(3), torch.randn(3))
    with pytest.raises(BadInput, match=r"the model takes 2 inputs \(x, y\); 1 were given"):
        interpret(model, [torch.randn(3)])
