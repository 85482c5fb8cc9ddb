"""Sixteen floats as a value: arithmetic, conversions and exp on every instruction level."""

import numpy as np
import pytest
import torch
from support.native import HARNESSES, ISAS, Isa, run_native
from support.native_rows import pointer, row_kernels, size

isas = pytest.mark.parametrize("isa", ISAS)


def unary(isa: Isa, which: int, x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, torch.nan)
    row_kernels(isa).math(which, pointer(x), size(x.numel()), pointer(y))
    return y


def samples() -> torch.Tensor:
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 8388607.5, -8388609.0, 3e38, 1e-40, torch.inf])
    return torch.cat((special, -special, torch.randn(1000) * 100))


@isas
def test_exp_within_two_ulp(isa: Isa) -> None:
    x = torch.linspace(-104, 89, 400_001)
    exact = torch.exp(x.double())
    ulp = torch.from_numpy(np.spacing(exact.float().clamp(max=3.4e38).numpy())).double()
    normal = exact < 3.4e38
    assert ((unary(isa, 0, x).double() - exact).abs() / ulp)[normal].max() < 2


@isas
def test_exp_at_the_ends(isa: Isa) -> None:
    x = torch.tensor([-torch.inf, torch.inf, torch.nan, 0.0, -0.0, -200.0, 200.0, 88.72, 88.73])
    assert torch.equal(unary(isa, 0, x)[[0, 1, 3, 4, 5, 6]], torch.tensor([0, torch.inf, 1, 1, 0, torch.inf]))
    assert unary(isa, 0, x)[2].isnan() and unary(isa, 0, x)[7].isfinite() and unary(isa, 0, x)[8] == torch.inf


@isas
def test_unary_operations_are_exact(isa: Isa) -> None:
    x = samples()
    for which, reference in ((1, torch.round), (2, torch.abs), (5, torch.neg)):
        assert torch.equal(unary(isa, which, x), reference(x)), which
    positive = x[x >= 0]
    assert torch.equal(unary(isa, 3, positive), torch.sqrt(positive.double()).float())


@isas
def test_binary_operations_are_exact(isa: Isa) -> None:
    a = samples()
    b = torch.roll(a, 7)
    references = (
        torch.add, torch.sub, torch.mul, torch.div, torch.minimum, torch.maximum, torch.copysign,
        lambda p, q: (p < q).float(), lambda p, q: (p <= q).float(), lambda p, q: (p == q).float(),
    )  # fmt: skip
    for which, reference in enumerate(references):
        y = torch.empty_like(a)
        row_kernels(isa).binary(which, pointer(a), pointer(b), size(a.numel()), pointer(y))
        torch.testing.assert_close(y, reference(a, b), rtol=0, atol=0, equal_nan=True, msg=str(which))


@isas
def test_scale_by_power_reaches_subnormal_numbers_and_infinity(isa: Isa) -> None:
    powers = torch.arange(-152.0, 130.0)
    a = torch.full_like(powers, 1.2345)
    y = torch.empty_like(a)
    row_kernels(isa).binary(10, pointer(a), pointer(powers), size(a.numel()), pointer(y))
    assert torch.equal(y, torch.ldexp(a.double(), powers.double()).float())


@isas
def test_sums_of_lanes_have_one_order(isa: Isa) -> None:
    for seed in range(50):
        x = torch.randn(16, generator=torch.Generator().manual_seed(seed)) * 1000
        y = torch.empty(4)
        row_kernels(isa).lanes(pointer(x), pointer(y))
        part = x
        while part.numel() > 1:
            part = part[: part.numel() // 2] + part[part.numel() // 2 :]
        below = sum(1 << i for i in range(16) if x[i] < 0)
        assert y.tolist() == [part.item(), x.max().item(), x.min().item(), below]


@isas
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversions_round_to_even(isa: Isa, dtype: torch.dtype) -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    exact = bits.view(dtype).float()
    exact = exact[~exact.isnan()]
    ordered = exact[exact.isfinite()].sort().values
    ties = (ordered[:-1] + ordered[1:]) / 2
    spread = torch.randn(50_001) * torch.exp(torch.empty(50_001).uniform_(-30, 13))
    x = torch.cat(
        (exact, ties, ties.nextafter(torch.tensor(torch.inf)), ties.nextafter(-torch.tensor(torch.inf)), spread)
    )
    x = torch.cat((x, torch.tensor([65519.0, 65520.0, 3.4e38, torch.nan, torch.inf])))
    stored, y, single = torch.empty(x.numel(), dtype=dtype), torch.empty_like(x), torch.empty_like(x)
    arguments = (pointer(x), size(x.numel()), pointer(stored), pointer(y), pointer(single))
    row_kernels(isa).convert(int(dtype == torch.float16), *arguments)
    torch.testing.assert_close(stored, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(y, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(single, y, rtol=0, atol=0, equal_nan=True)


@isas
def test_tails_touch_nothing_else(isa: Isa) -> None:
    for n in range(1, 33):
        x, y = torch.ones(n), torch.zeros(n + 16)
        row_kernels(isa).math(5, pointer(x), size(n), pointer(y))
        assert torch.equal(y, torch.cat((-torch.ones(n), torch.zeros(16))))


@isas
def test_row_kernels_under_sanitizers(isa: Isa) -> None:
    assert run_native(HARNESSES / "rows_sanitized.cpp", isa=isa) == "ok\n"
