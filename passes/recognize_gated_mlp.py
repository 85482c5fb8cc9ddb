"""Give activations their names: GELU and SiLU written out, and products of an activated gate and a value."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmc.ir.match import Match
from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter, Rule, apply_rules
from llmc.ir.sizes import same_shape

aten = torch.ops.aten
llmc = torch.ops.llmc

_ROOT_2_PI = math.sqrt(2 / math.pi)
_CUBE = 0.044715
_QUICK = 1.702


def _gelu_cube(x: Tensor, half: float, slope: float, cube: float, exponent: float, one: float) -> Any:  # noqa: ANN401
    """`0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`."""
    inner = (x + aten.pow.Tensor_Scalar(x, exponent) * cube) * slope
    return (x * half) * (torch.tanh(inner) + one)


def _gelu_factored(x: Tensor, half: float, slope: float, cube: float, one: float) -> Any:  # noqa: ANN401
    """The same, as `x (1 + 0.044715 x x)`."""
    inner = (x * slope) * ((x * cube) * x + one)
    return (x * half) * (torch.tanh(inner) + one)


def _gelu_erf(x: Tensor, half: float, root: float, one: float) -> Any:  # noqa: ANN401
    return (x * half) * (torch.erf(x / root) + one)


def _gelu_erf_product(x: Tensor, half: float, inverse: float, one: float) -> Any:  # noqa: ANN401
    return (x * half) * (torch.erf(x * inverse) + one)


def _silu(x: Tensor) -> Any:  # noqa: ANN401
    return x * torch.sigmoid(x)


_EXPECTED = {
    "half": 0.5,
    "one": 1.0,
    "exponent": 3.0,
    "cube": _CUBE,
    "slope": _ROOT_2_PI,
    "root": math.sqrt(2.0),
    "inverse": math.sqrt(0.5),
}


def _other_constants(match: Match) -> str | None:
    """Why the constants are not those of a GELU; models write them with at least eight digits."""
    for name, expected in _EXPECTED.items():
        value = match[name]
        if value is not None and abs(value / expected - 1) > 1.5e-9:
            return f"{value} stands where a GELU has {expected:.10g}"
    return None


_SPELLED_OUT = (
    Rule(
        "recognize_activation",
        (_gelu_cube, _gelu_factored),
        lambda x: aten.gelu.default(x, approximate="tanh"),
        _other_constants,
    ),
    Rule("recognize_activation", (_gelu_erf, _gelu_erf_product), lambda x: aten.gelu.default(x), _other_constants),
    Rule("recognize_activation", _silu, lambda x: aten.silu.default(x)),
)

_GATES: dict[str, Callable[[Any], Any]] = {
    "silu": lambda x: aten.silu.default(x),
    "gelu": lambda x: aten.gelu.default(x),
    "gelu_tanh": lambda x: aten.gelu.default(x, approximate="tanh"),
    "relu": lambda x: aten.relu.default(x),
    "relu2": lambda x: _squared(aten.relu.default(x)),
    "quick_gelu": lambda x: x * torch.sigmoid(x * _QUICK),
}
"""Spellings of the activations of `gated_act`, after those of `_SPELLED_OUT` have their names."""

_LATE_GATES: dict[str, Callable[[Any], Any]] = {"sigmoid": torch.sigmoid}
"""After all others: a sigmoid is part of some."""


def _squared(x: Any) -> Any:  # noqa: ANN401
    return x * x


def _gated(act: Callable[[Any], Any]) -> tuple[Callable[..., Any], ...]:
    """An activated gate times a value, in the dtype of both or in fp32 and rounded back."""

    def widened(gate: Tensor, up: Tensor, dtype: torch.dtype) -> Any:  # noqa: ANN401
        return (act(gate.float()) * up.float()).to(dtype)

    def plain(gate: Tensor, up: Tensor) -> Any:  # noqa: ANN401
        return act(gate) * up

    return widened, plain


def _refusal(match: Match) -> str | None:
    """Why the product is no `gated_act`."""
    gate, up, result = match.val("gate"), match.val("up"), match.node.meta["val"]
    if match["up"] in match.nodes:
        return "the value is the activated gate itself"
    if not isinstance(up, torch.Tensor) or not same_shape(gate, up):
        return f"the gate is {list(gate.shape)}, the value {list(up.shape)}"
    if gate.dtype != up.dtype or gate.dtype != result.dtype:
        return f"the gate is {gate.dtype}, the value {up.dtype}, the result {result.dtype}"
    return None


def _rules(gates: dict[str, Callable[[Any], Any]], ending: int) -> list[Rule]:
    def build(act: str) -> Callable[..., Any]:
        return lambda gate, up: llmc.gated_act.default(gate, up, act)

    return [Rule("recognize_gated_mlp", _gated(act)[ending], build(name), _refusal) for name, act in gates.items()]


@dataclass(frozen=True)
class RecognizeGatedMlp:
    """Make every activated gate times a value a `gated_act`, and every GELU and SiLU that is written out one op.

    Activations: silu, gelu (erf and tanh, also written out), quick gelu, relu, squared relu and sigmoid, in either
    order of the factors, in the model's dtype or widened to fp32.
    """

    name: ClassVar[str] = "recognize_gated_mlp"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Name all of them; return how many.

        Raises:
            BuildFailed: an activation does not compute what it replaces.
        """
        made = apply_rules(model, rewriter, _SPELLED_OUT)
        for gates in (_GATES, _LATE_GATES):
            for ending in (0, 1):
                made += apply_rules(model, rewriter, _rules(gates, ending))
        return made
