"""Each invariant of the IR, broken once."""

import operator
from collections.abc import Callable

import pytest
import torch
from support.check_pass import trace
from torch import Tensor, fx, nn

from llmc.errors import InvalidGraph
from llmc.ir.model import Model, Origin
from llmc.ir.verify import Verifier, verify
from llmc.ir.weights import Constant

aten = torch.ops.aten


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.up(x))


@pytest.fixture
def model() -> Model:
    return trace(Layer(), torch.ones(3, 8), dynamic={0: [0]})


def _node(model: Model, name: str) -> fx.Node:
    return next(node for node in model.graph.nodes if node.name == name)


def test_a_traced_model_is_valid(model: Model) -> None:
    verify(model)


def _use_before_definition(model: Model) -> None:
    _node(model, "linear").prepend(_node(model, "relu"))


def _get_attr(model: Model) -> None:
    with model.graph.inserting_before(_node(model, "relu")):
        extra = model.graph.create_node("call_method", "relu", (_node(model, "linear"),))
    _node(model, "relu").args = (extra,)


def _no_tuple(model: Model) -> None:
    model.graph.output_node().args = (_node(model, "relu"),)


def _python_function(model: Model) -> None:
    _node(model, "relu").target = torch.relu


def _packet(model: Model) -> None:
    _node(model, "relu").target = aten.relu


def _in_place(model: Model) -> None:
    _node(model, "relu").target = aten.relu_.default


def _recipe_without_placeholder(model: Model) -> None:
    model.weights["ghost"] = Constant(torch.ones(1))


def _weight_after_input(model: Model) -> None:
    _node(model, "x").append(_node(model, "up_weight"))


def _recipe_of_another_shape(model: Model) -> None:
    model.weights["up_weight"] = Constant(torch.ones(4, 7))


def _recipe_of_another_dtype(model: Model) -> None:
    model.weights["up_weight"] = Constant(torch.ones(4, 8, dtype=torch.bfloat16))


def _no_origin(model: Model) -> None:
    del _node(model, "relu").meta["origin"]


def _no_value(model: Model) -> None:
    del _node(model, "relu").meta["val"]


def _wrong_dtype(model: Model) -> None:
    _node(model, "relu").meta["val"] = _node(model, "relu").meta["val"].to(torch.bfloat16)


def _wrong_shape(model: Model) -> None:
    _node(model, "relu").meta["val"] = _node(model, "x").meta["val"]


def _wrong_argument(model: Model) -> None:
    _node(model, "linear").args = (_node(model, "x"), _node(model, "up_weight"), 3)


def _dead_node(model: Model) -> None:
    with model.graph.inserting_before(_node(model, "relu")):
        dead = model.graph.call_function(aten.sin.default, (_node(model, "linear"),))
    dead.meta.update(val=_node(model, "linear").meta["val"], origin=Origin())


def _fixed_size(model: Model) -> None:
    assert _node(model, "x").meta["val"].shape[0] == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_use_before_definition, "the graph is not well formed: Argument 'linear' of Node 'relu' was used before"),
        (_get_attr, "is a call_method; expected a placeholder or a call_function"),
        (_no_tuple, "output: returns relu; expected a tuple of nodes"),
        (_python_function, "relu: calls <built-in method relu"),
        (_packet, "relu: calls aten.relu; expected an aten or llmc op"),
        (_in_place, "relu: aten.relu_.default writes to its argument; use the functional form"),
        (_recipe_without_placeholder, "weight ghost: has a recipe, but the graph has no placeholder of this name"),
        (_weight_after_input, "weight up_weight: its placeholder comes after an input; weights come first"),
        (
            _recipe_of_another_shape,
            r"weight up_weight: recorded as f32\[4, 8\], its recipe gives torch.float32\[4, 7\]",
        ),
        (_recipe_of_another_dtype, r"weight up_weight: recorded as f32\[4, 8\], its recipe gives torch.bfloat16"),
        (_no_origin, r'relu: meta\["origin"\] is None; expected an Origin'),
        (_no_value, r'relu: meta\["val"\] is None; expected a fake tensor or size'),
        (_wrong_dtype, r"relu = aten.relu\(linear\) .*: gives f32\[s\d+, 4\], but meta\[\"val\"\] is bf16"),
        (_wrong_shape, r"relu = aten.relu\(linear\) .*: gives f32\[s\d+, 4\], but meta\[\"val\"\] is f32\[s\d+, 8\]"),
        (_wrong_argument, r"linear = aten.linear\(x, up_weight, bias=3\) \(up\): cannot be applied to its arguments"),
        (_dead_node, r"sin_default = aten.sin\(linear\) .*: nothing uses it; erase it"),
        (_fixed_size, r"x: its size s\d+ has become 3; expected it to stay free"),
    ],
    ids=lambda value: value.__name__.lstrip("_") if callable(value) else "",
)
def test_a_broken_invariant_is_named(model: Model, damage: Callable[[Model], None], message: str) -> None:
    damage(model)
    with pytest.raises(InvalidGraph, match=message):
        verify(model)


def test_sizes_may_be_calculated_with() -> None:
    model = trace(lambda x: x.reshape(x.shape[0] * 2, 4) + x.shape[0], torch.ones(3, 8), dynamic={0: [0]})
    assert any(node.target is operator.mul for node in model.calls())
    verify(model)


def test_equal_calls_are_propagated_once() -> None:
    def layers(x: Tensor) -> Tensor:
        for _ in range(6):
            x = torch.sin(x) + 1
        return x

    verifier = Verifier()
    verifier.check(trace(layers, torch.ones(3, 8), dynamic={0: [0]}))
    assert len(verifier.inferred) == 2
