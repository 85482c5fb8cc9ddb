"""Activations against fp64 references."""

from collections.abc import Callable

import pytest
import torch
from support.native import ISAS, Isa
from support.native_rows import SIZES, pointer, row_kernels, size

from llmc.ir.ops import ACTIVATIONS

NAMES = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "sigmoid", "tanh")
EXACT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {**ACTIVATIONS, "erf": torch.erf}


def apply(isa: Isa, name: str, x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    which = 4 if name == "erf" else 10 + NAMES.index(name)
    row_kernels(isa).math(which, pointer(x), size(x.numel()), pointer(y))
    return y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", EXACT)
def test_accuracy(isa: Isa, name: str) -> None:
    x = torch.cat((torch.linspace(-12, 12, 100_003), torch.logspace(-30, 1, 1000), -torch.logspace(-30, 1, 1000)))
    y, exact = apply(isa, name, x), EXACT[name](x.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=3e-7)
    near = x.abs() < 1e-2  # relative accuracy holds near zero
    torch.testing.assert_close(y[near].double(), exact[near], rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("isa", ISAS)
def test_large_arguments_and_nan(isa: Isa) -> None:
    x = torch.tensor([-1e4, 1e4, -89.0, 89.0, torch.nan])
    for name, exact in EXACT.items():
        torch.testing.assert_close(
            apply(isa, name, x), exact(x.double()).float(), rtol=1e-6, atol=1e-30, equal_nan=True
        )


@pytest.mark.parametrize("isa", ISAS)
def test_gated_rows(isa: Isa) -> None:
    for n in SIZES:
        gate, up, y = torch.randn(n), torch.randn(n), torch.empty(n)
        row_kernels(isa).binary(11, pointer(gate), pointer(up), size(n), pointer(y))
        torch.testing.assert_close(y, torch.nn.functional.silu(gate) * up, rtol=1e-6, atol=1e-6)
