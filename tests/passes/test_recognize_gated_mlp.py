"""Activations written out become one op, and products with an activated gate `gated_act`."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes.recognize_gated_mlp import RecognizeGatedMlp
from tests.support.check_pass import check_pass
from tests.support.tidied import TIDY
from tests.support.tiny_models import tiny_model, tokens

GATE = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
UP = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
PASSES = [*TIDY, RecognizeGatedMlp()]


def acts(model: Model) -> list[object]:
    return [node.args[2] for node in model.calls(torch.ops.llmc.gated_act.default)]


def test_a_plain_product_is_left_alone() -> None:
    check_pass(PASSES, lambda g, u: g * u, GATE, UP, changes=0, counts={"mul": 1}, refused=[])


GATES: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("silu", F.silu),
    ("silu", lambda x: x * torch.sigmoid(x)),
    ("gelu", F.gelu),
    ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    ("gelu_tanh", ACT2FN["gelu_new"]),
    ("gelu_tanh", ACT2FN["gelu_fast"]),
    ("gelu_tanh", ACT2FN["gelu_python_tanh"]),
    ("gelu_tanh", ACT2FN["gelu_accurate"]),
    ("gelu", ACT2FN["gelu_python"]),
    ("quick_gelu", ACT2FN["quick_gelu"]),
    ("relu", F.relu),
    ("relu2", ACT2FN["relu2"]),
    ("sigmoid", torch.sigmoid),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("act", "function"), GATES)
def test_an_activated_gate_times_a_value_is_one_op(
    act: str, function: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    gate, up = GATE.to(dtype), UP.to(dtype)
    model = check_pass(
        PASSES, lambda g, u: function(g) * u, gate, up, dynamic={0: [1], 1: [1]}, counts={"gated_act": 1}
    )
    assert acts(model) == [act]


@pytest.mark.parametrize(("act", "function"), [("silu", F.silu), ("gelu", F.gelu), ("sigmoid", torch.sigmoid)])
def test_factors_may_be_swapped_and_widened(act: str, function: Callable[[Tensor], Tensor]) -> None:
    model = check_pass(
        PASSES,
        lambda g, u: (u.float() * function(g.float())).to(g.dtype),
        GATE.bfloat16(),
        UP.bfloat16(),
        counts={"gated_act": 1},
    )
    assert acts(model) == [act]


WRITTEN_OUT: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("gelu", ACT2FN["gelu_new"]),
    ("gelu", ACT2FN["gelu_fast"]),
    ("gelu", ACT2FN["gelu_python"]),
    ("gelu", lambda x: x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))),
    ("gelu", lambda x: x * 0.5 * (1.0 + torch.erf(x * math.sqrt(0.5)))),
    ("silu", lambda x: torch.sigmoid(x) * x),
]


@pytest.mark.parametrize(("op", "function"), WRITTEN_OUT)
def test_an_activation_written_out_is_one_op(op: str, function: Callable[[Tensor], Tensor]) -> None:
    check_pass(PASSES, lambda x: function(x), GATE, counts={op: 1}, refused=[])


def test_other_constants_are_refused() -> None:
    check_pass(
        PASSES,
        lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
        GATE,
        refused=["0.8 stands where a GELU has 0.7978845608"],
    )


def test_a_gate_of_another_shape_is_refused() -> None:
    check_pass(
        PASSES,
        lambda g, u: torch.sigmoid(g) * u,
        GATE[..., :1],
        UP,
        refused=["the gate is [1, 5, 1], the value [1, 5, 16]"],
    )


def test_a_gate_of_another_dtype_is_refused() -> None:
    reason = "the gate is torch.bfloat16, the value torch.float32, the result torch.float32"
    check_pass(PASSES, lambda g, u: F.silu(g) * u, GATE.bfloat16(), UP, counts={"mul": 1, "silu": 1}, refused=[reason])


def test_a_gate_that_is_read_elsewhere_is_refused() -> None:
    def function(g: Tensor, u: Tensor) -> Tensor:
        activated = F.silu(g)
        return activated * u + activated

    check_pass(PASSES, function, GATE, UP, refused=["silu is also used elsewhere"])


def test_a_squared_activation_is_not_gated() -> None:
    check_pass(
        PASSES,
        lambda x: F.relu(x).square(),
        GATE,
        counts={"mul": 1, "relu": 1},
        refused=["the value is the activated gate itself"],
    )


FAMILIES = {"llama": "silu", "gemma2": "gelu_tanh", "cohere": "silu", "gpt2": None, "phi": None, "opt": None}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_models_have_all_their_mlps_recognised(family: str) -> None:
    model = tiny_model(family, torch.bfloat16)
    for step in TIDY:
        step.run(model, Rewriter(model))
    model = check_pass(RecognizeGatedMlp(), model, tokens())
    assert acts(model) == ([FAMILIES[family]] * 2 if FAMILIES[family] else [])
    gelus = sum(1 for _ in model.calls(torch.ops.aten.gelu.default))
    assert gelus == (2 if family in ("gpt2", "phi") else 0)
