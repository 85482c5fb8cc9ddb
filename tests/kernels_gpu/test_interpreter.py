"""The interpreter computes what the GPU's number formats give; torch is the reference."""

import itertools
from collections.abc import Callable

import pytest
import torch
from support.triton_interpreter import launch, load_kernels

SMALL_FLOATS = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}

KERNELS = """
import triton
import triton.language as tl

@triton.jit
def binary(x, y, o, OP: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    a, b = tl.load(x + i), tl.load(y + i)
    if OP == "add": r = a + b
    elif OP == "sub": r = a - b
    elif OP == "mul": r = a * b
    elif OP == "div": r = a / b
    elif OP == "max": r = tl.maximum(a, b)
    elif OP == "min": r = tl.minimum(a, b)
    elif OP == "lt": r = a < b
    elif OP == "le": r = a <= b
    elif OP == "gt": r = a > b
    elif OP == "ge": r = a >= b
    elif OP == "eq": r = a == b
    elif OP == "ne": r = a != b
    elif OP == "where": r = tl.where(a > b, a, b)
    elif OP == "neg": r = -a
    elif OP == "abs": r = tl.abs(a)
    tl.store(o + i, r)

@triton.jit
def cast(x, o, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, tl.load(x + i).to(o.dtype.element_ty))

@triton.jit
def dot(x, y, o, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr = "tf32"):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(x + m[:, None] * K + k[None, :])
    b = tl.load(y + k[:, None] * N + n[None, :])
    tl.store(o + m[:, None] * N + n[None, :], tl.dot(a, b, input_precision=PRECISION))
"""
kernels = load_kernels(KERNELS)

OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "max": lambda a, b: torch.where(b.isnan() | (a > b), a, b),  # torch.fmax takes some NaNs for numbers
    "min": lambda a, b: torch.where(b.isnan() | (a < b), a, b),
    "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne,
    "where": lambda a, b: torch.where(a > b, a, b), "neg": lambda a, b: -a, "abs": lambda a, b: a.abs(),
}  # fmt: skip


def sample(dtype: torch.dtype, count: int = 1 << 14) -> torch.Tensor:
    """Values of all magnitudes and signs, infinities and NaN among them."""
    bits = torch.randint(0, 1 << (8 * dtype.itemsize), (count,), generator=torch.Generator().manual_seed(3))
    return bits.to(torch.uint8 if dtype.itemsize == 1 else torch.uint16).view(dtype)


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Bit for bit, all NaNs alike."""
    assert found.dtype == wanted.dtype
    if found.dtype.is_floating_point:
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[found.itemsize]
        either = torch.isnan(found.float()) & torch.isnan(wanted.float())
        return bool((either | (found.view(bits) == wanted.view(bits))).all())
    return torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_on_16_bit_floats_are_torch_s(operation: str, dtype: torch.dtype) -> None:
    x, y = sample(dtype), sample(dtype).roll(1)
    y[::7] = x[::7]
    wanted = OPERATIONS[operation](x, y)
    found = torch.empty_like(wanted)
    launch(kernels.binary, (4,), x, y, found, operation, 1 << 12).assert_written_once(found)
    if operation in ("max", "min"):  # which zero of two is the larger is not defined
        found, wanted = found.where(found != 0, 0), wanted.where(wanted != 0, 0)
    assert same(found, wanted)


@pytest.mark.parametrize(
    ("source", "target"), [pair for pair in itertools.permutations([torch.float32, *SMALL_FLOATS], 2)], ids=str
)
def test_casts_between_floats_round_to_nearest_even_and_saturate(source: torch.dtype, target: torch.dtype) -> None:
    if source == torch.float32:
        x = sample(torch.bfloat16).float() * (1 + torch.rand(1 << 14, generator=torch.Generator().manual_seed(5)))
        bits = torch.arange(1 << 13).to(torch.uint8 if target.itemsize == 1 else torch.int16)
        x[: 1 << 13] = (bits.view(target).float() + (bits + 1).view(target).float()) / 2  # ties
    else:
        x = sample(source)
    wide = x.float()
    wanted = (wide.clamp(-LARGEST[target], LARGEST[target]) if target in LARGEST else wide).to(target)
    found = torch.empty_like(wanted)
    launch(kernels.cast, (4,), x, found, 1 << 12).assert_written_once(found)
    assert same(found, wanted)


@pytest.mark.parametrize("whole", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_casts_between_integers_and_floats(dtype: torch.dtype, whole: torch.dtype) -> None:
    info = torch.iinfo(whole)
    x = torch.randint(info.min, info.max, (1 << 12,), dtype=whole, generator=torch.Generator().manual_seed(3))
    wanted = x.float().to(dtype)
    found = torch.empty_like(wanted)
    launch(kernels.cast, (1,), x, found, 1 << 12)
    assert same(found, wanted)
    back = torch.empty_like(x)
    values = (torch.rand(1 << 12) * 200 - (100 if info.min else 0)).to(dtype)
    launch(kernels.cast, (1,), values, back, 1 << 12)
    assert torch.equal(back, values.to(whole))


@pytest.mark.parametrize("dtype", SMALL_FLOATS, ids=str)
def test_a_dot_multiplies_exactly_and_accumulates_in_float32(dtype: torch.dtype) -> None:
    x, y = torch.randn(16, 64).to(dtype), torch.randn(64, 32).to(dtype)
    found = torch.empty(16, 32)
    launch(kernels.dot, (1,), x, y, found, 16, 32, 64)
    torch.testing.assert_close(found.double(), x.double() @ y.double(), rtol=1e-5, atol=1e-4)


def test_a_dot_of_float32_reads_ten_bits_of_the_mantissa_unless_told_otherwise() -> None:
    x, y = torch.randn(16, 64), torch.randn(64, 32)
    found, ieee = torch.empty(16, 32), torch.empty(16, 32)
    launch(kernels.dot, (1,), x, y, found, 16, 32, 64)
    launch(kernels.dot, (1,), x, y, ieee, 16, 32, 64, "ieee")
    cut_x, cut_y = ((values.view(torch.int32) & ~0x1FFF).view(torch.float32) for values in (x, y))
    torch.testing.assert_close(found, cut_x @ cut_y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ieee, x @ y, rtol=1e-5, atol=1e-5)
    assert (found - ieee).abs().max() > 1e-3


def test_a_dot_of_bytes_is_exact() -> None:
    x, y = (torch.randint(-128, 128, (64, 64)).to(torch.int8) for _ in range(2))
    found = torch.empty(64, 64, dtype=torch.int32)
    launch(kernels.dot, (1,), x, y, found, 64, 64, 64)
    assert torch.equal(found, x.int() @ y.int())
