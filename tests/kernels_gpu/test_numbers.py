"""Functions of numbers against torch in double precision, over all magnitudes, and at what is no ordinary number."""

from collections.abc import Callable

import pytest
import torch
from support.triton_interpreter import launch, load_kernels

from llmc.ir.ops import ACTIVATIONS

NAN, INFINITE = float("nan"), float("inf")
ONE = dict(ACTIVATIONS) | {"erf": torch.erf, "softplus": torch.nn.functional.softplus, "log1p": torch.log1p}
TWO: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "maximum": torch.maximum, "minimum": torch.minimum, "power": torch.pow, "remainder": torch.remainder,
    "whole_divide": torch.floor_divide, "whole_remainder": torch.remainder,
}  # fmt: skip


def kernels(functions: dict[str, int]) -> object:
    """A kernel for each function of one argument or two."""
    lines = ["import triton", "import triton.language as tl"]
    lines += [f"from llmc.codegen.triton.library.numbers import {', '.join(functions)}"]
    for name, count in functions.items():
        operands = ", ".join(f"tl.load({x} + i)" for x in "ab"[:count])
        lines += ["", "", "@triton.jit", f"def run_{name}(a, b, y, B: tl.constexpr):"]
        lines += ["    i = tl.arange(0, B)", f"    tl.store(y + i, {name}({operands}))"]
    return load_kernels("\n".join(lines) + "\n")


MODULE = kernels(dict.fromkeys(ONE, 1) | dict.fromkeys(TWO, 2))


def numbers() -> torch.Tensor:
    """[4096] of all magnitudes, with zeros, infinities and NaN."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(1500, generator=generator)
    wide = torch.linspace(-40, 40, 1500)
    magnitudes = torch.logspace(-30, 30, 500)
    rest = torch.tensor([0.0, -0.0, 1.0, -1.0, INFINITE, -INFINITE, NAN, 20.0, -20.0, 0.625, -0.625])
    x = torch.cat([small, wide, magnitudes, -magnitudes, rest])
    return torch.nn.functional.pad(x, (0, 4096 - x.numel()))


def run(name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(a)
    launch(getattr(MODULE, f"run_{name}"), (1,), a, b, y, a.numel())
    return y


def compare(found: torch.Tensor, wanted: torch.Tensor, absolute: float) -> None:
    """Within 1e-6 of each value, or `absolute` where that is more."""
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=absolute, equal_nan=True)


@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_number(name: str) -> None:
    x = numbers()
    if name == "log1p":
        x = torch.where(x.isinf(), 0.0, x.abs())
    if name in ("silu", "gelu", "gelu_tanh", "quick_gelu"):
        x = torch.where(x == -INFINITE, 0.0, x)  # 0 times infinity, of which torch's functions make this and that
    found, wanted = run(name, x, x), ONE[name](x.double())
    overflown = wanted.abs() > 3.4e38
    assert found[overflown].isinf().all()
    compare(found[~overflown], wanted[~overflown], 2e-7 if name != "gelu" else 2e-6)


@pytest.mark.parametrize("name", ["maximum", "minimum", "remainder"])
def test_functions_of_two_numbers(name: str) -> None:
    a, b = numbers()[:3000], numbers()[:3000].flip(0)
    a, b = (torch.nn.functional.pad(x, (0, 1096), value=2.0) for x in (a, b))
    if name == "remainder":
        b = torch.where(b.abs() < 1e-3, 1.5, b)
    compare(run(name, a, b), TWO[name](a.double(), b.double()), 1e-5 if name == "remainder" else 0.0)


@pytest.mark.parametrize("exponent", [2.0, 3.0, -1.0, 0.5, -0.5, 0.0, 2.5, -3.0, 0.37])
def test_powers(exponent: float) -> None:
    x = numbers()
    x = torch.where(x.abs() > 1e9, 2.0, torch.where(x.abs() < 1e-9, 0.0, x))
    found, wanted = run("power", x, torch.full_like(x, exponent)), x.double() ** exponent
    compare(found, torch.where(x == 0, wanted.abs(), wanted), 0.0)  # the zero that is negative counts as zero


def test_whole_numbers_are_divided_downwards() -> None:
    a = torch.arange(-2048, 2048)
    b = torch.tensor([3, -3, 7, -128, 1, -1, 1000, 64]).repeat(512)
    for name in ("whole_divide", "whole_remainder"):
        assert torch.equal(run(name, a, b), TWO[name](a, b)), name
