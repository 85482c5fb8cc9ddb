"""Instructions on numbers against numpy, PyTorch and exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.software_cuda import numbers
from support.software_numbers import UNSIGNED, Array, evaluate

SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3.4e38, 0.5, 1.5, 2.5, -2.5], np.float32
)


def some_floats(count: int, seed: int) -> NDArray[np.float32]:
    """Bits of all kinds and numbers of usual size."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**32, count, np.uint32).view(np.float32)
    return np.concatenate([SPECIAL, bits, random.normal(0, 10, count).astype(np.float32)])


def as_bits(values: torch.Tensor) -> Array:
    kinds = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}
    return values.contiguous().view(kinds[values.element_size()]).numpy()


def assert_same(found: Array, wanted: Array, nan: Array) -> None:
    """Equal bits, but where there is no number any NaN will do."""
    np.testing.assert_array_equal(found[~nan], wanted[~nan])


@pytest.mark.parametrize(("name", "kind"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_small_floats_to_and_from_fp32(name: str, kind: torch.dtype) -> None:
    codes = np.arange(65536, dtype=np.uint16)
    wide = torch.from_numpy(codes.view(np.int16)).view(kind).float()
    found = evaluate(f"cvt.f32.{name}", codes)
    assert_same(found, as_bits(wide), wide.isnan().numpy())
    values = torch.from_numpy(some_floats(20_000, 1))
    small = values.to(kind)
    given = values.numpy().view(np.uint32)
    assert_same(evaluate(f"cvt.rn.{name}.f32", given), as_bits(small), small.isnan().numpy())
    pairs = evaluate(f"cvt.rn.{name}x2.f32", given[::-1], given)
    assert_same((pairs & np.uint32(0xFFFF)).astype(np.uint16), as_bits(small), small.isnan().numpy())
    np.testing.assert_array_equal(pairs[::-1] >> 16, pairs & np.uint32(0xFFFF))


@pytest.mark.parametrize(
    ("name", "kind", "most"), [("e4m3", torch.float8_e4m3fn, 448), ("e5m2", torch.float8_e5m2, 57344)]
)
def test_8_bit_floats(name: str, kind: torch.dtype, most: float) -> None:
    values = torch.from_numpy(np.concatenate([some_floats(20_000, 2), np.linspace(-600, 600, 4001, dtype=np.float32)]))
    small = values.clamp(-most, most).to(kind)
    given = values.numpy().view(np.uint32)
    pairs = evaluate(f"cvt.rn.satfinite.{name}x2.f32", given[::-1], given)
    assert_same((pairs & np.uint16(0xFF)).astype(np.uint8), as_bits(small), values.isnan().numpy())
    np.testing.assert_array_equal(pairs[::-1] >> 8, pairs & np.uint16(0xFF))
    codes = np.arange(256, dtype=np.uint16)
    wide = torch.arange(256, dtype=torch.uint8).view(kind).to(torch.float16)
    halves = evaluate(f"cvt.rn.f16x2.{name}x2", codes | (codes[::-1] << np.uint16(8)))
    assert_same((halves & np.uint32(0xFFFF)).astype(np.uint16), as_bits(wide), wide.isnan().numpy())


INTEGERS = ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64")


def held(values: Array) -> Array:
    """Integers as registers have them: 8 bits in 16."""
    size = values.dtype.itemsize
    wide = values.astype(f"{values.dtype.kind}2") if size == 1 else values
    return wide.view(UNSIGNED[wide.dtype.itemsize])


def numpy_type(name: str) -> np.dtype:
    return np.dtype(f"{'i' if name[0] == 's' else name[0]}{int(name[1:]) // 8}")


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("source", INTEGERS)
def test_integers(source: str, target: str) -> None:
    kind, wanted = numpy_type(source), numpy_type(target)
    info, limits = np.iinfo(kind), np.iinfo(wanted)
    values = np.random.default_rng(3).integers(info.min, info.max, 1000, kind, endpoint=True)
    values = np.concatenate([values, np.array([info.min, info.max, 0, 1], kind)])
    np.testing.assert_array_equal(evaluate(f"cvt.{target}.{source}", held(values)), held(values.astype(wanted)))
    clipped = np.array([min(max(int(value), limits.min), limits.max) for value in values], wanted)
    np.testing.assert_array_equal(evaluate(f"cvt.sat.{target}.{source}", held(values)), held(clipped))
    found = evaluate(f"cvt.rn.f32.{source}", held(values))
    np.testing.assert_array_equal(found.view(np.float32), values.astype(np.float32))
    if kind.itemsize == 8:
        return
    exact = torch.from_numpy(values.astype(np.float64))
    np.testing.assert_array_equal(evaluate(f"cvt.rn.bf16.{source}", held(values)), as_bits(_bfloat(exact)))


def _bfloat(values: torch.Tensor) -> torch.Tensor:
    """Rounded once: an fp32 number on the way there is odd if it is not exact."""
    rounded = values.float()
    bits = rounded.view(torch.int32)
    wrong = (rounded.double() != values) & (bits & 1 == 0)
    toward = torch.where(rounded.double().abs() < values.abs(), 1, -1).to(torch.int32)
    return torch.where(wrong, bits + toward, bits).view(torch.float32).bfloat16()


@pytest.mark.parametrize("how", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("target", ["s8", "u16", "s32", "u32", "s64", "u64"])
def test_floats_to_integers(how: str, target: str) -> None:
    values = np.concatenate([some_floats(2000, 4), np.arange(-300, 300, 0.25, np.float32)])
    with np.errstate(invalid="ignore"):
        rounded = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[how](values)
    kind = numpy_type(target)
    limits = np.iinfo(kind)
    of_nan = 1 << 63 if kind.itemsize == 8 else 0
    wanted = [of_nan if x != x else min(max(int(np.clip(x, -1e30, 1e30)), limits.min), limits.max) for x in rounded]
    bits = np.array([value & (2 ** (8 * kind.itemsize) - 1) for value in wanted], f"u{kind.itemsize}").view(kind)
    np.testing.assert_array_equal(evaluate(f"cvt.{how}.{target}.f32", values.view(np.uint32)), held(bits))


def test_tf32_rounds_halves_away_from_zero() -> None:
    values = some_floats(2000, 5)
    found = evaluate("cvt.rna.tf32.f32", values.view(np.uint32)).view(np.float32)
    finite = np.isfinite(values) & (np.abs(values) < 1e38) & (np.abs(values) > 1e-30)
    mantissa, exponent = np.frexp(values[finite].astype(np.float64))
    steps = np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5)
    np.testing.assert_array_equal(found[finite], np.ldexp(steps, exponent - 11).astype(np.float32))


@pytest.mark.parametrize(("name", "kind"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("operation", ["fma", "add", "sub", "mul"])
def test_small_floats_are_rounded_once(operation: str, name: str, kind: torch.dtype) -> None:
    random = np.random.default_rng(6)
    given = [random.integers(0, 2**16, 3000, np.uint16) for _ in range(3)]
    given[2][:1000] = given[2][:1000] % 0x0400 + (given[0][:1000] & np.uint16(0x7C00))  # near the size of a
    operands = given[: 3 if operation == "fma" else 2]
    found = evaluate(f"{operation}.rn.{name}", *operands)
    values = [torch.from_numpy(one.view(np.int16)).view(kind).double().numpy() for one in operands]
    for place, parts in enumerate(zip(*values, strict=True)):
        if not np.isfinite(parts).all():
            continue
        a, b, *c = (Fraction(part) for part in parts)
        exact = {"add": a + b, "sub": a - b, "mul": a * b, "fma": a * b + (c[0] if c else 0)}[operation]
        assert _is_nearest(exact, int(found[place]), kind), f"{operation} {parts}: {found[place]:#x}"
    halves = [one.astype(np.uint32) | one[::-1].astype(np.uint32) << 16 for one in operands]
    pairs = evaluate(f"{operation}.rn.{name}x2", *halves)
    np.testing.assert_array_equal(pairs & np.uint32(0xFFFF), found)
    np.testing.assert_array_equal(pairs >> 16, found[::-1])


def _is_nearest(exact: Fraction, code: int, kind: torch.dtype) -> bool:
    """Whether no other number of a type is nearer, or as near and even."""

    def value(code: int) -> Fraction | None:
        number = torch.tensor([code], dtype=torch.int32).to(torch.int16).view(kind).double().item()
        return Fraction(number) if np.isfinite(number) else None

    mine = value(code)
    if mine is None:  # infinite: beyond the largest and half a step
        most = torch.finfo(kind)
        return abs(exact) >= Fraction(most.max) * (1 + Fraction(most.eps) / 4)
    magnitude = code & 0x7FFF
    near = [value((code & 0x8000) | other) for other in (magnitude - 1, magnitude + 1) if other >= 0]
    distances = [abs(exact - other) for other in near if other is not None]
    least = min(distances, default=Fraction(2**200))
    return abs(exact - mine) < least or (abs(exact - mine) == least and magnitude % 2 == 0)


@pytest.mark.parametrize(("name", "kind"), [("f32", np.float32), ("f64", np.float64)])
def test_numbers_win_over_nan_and_positive_zero_over_negative(name: str, kind: type) -> None:
    values = SPECIAL.astype(kind)
    a, b = (one.reshape(-1) for one in np.meshgrid(values, values))
    bits = UNSIGNED[values.itemsize]
    for opcode, function in (("min", np.fmin), ("max", np.fmax)):
        found = evaluate(f"{opcode}.{name}", a.view(bits), b.view(bits)).view(kind)
        np.testing.assert_array_equal(found, function(a, b))
    zeros = np.array([0.0, -0.0], kind)
    assert not np.signbit(evaluate(f"max.{name}", zeros.view(bits), zeros[::-1].copy().view(bits)).view(kind)).any()
    assert np.signbit(evaluate(f"min.{name}", zeros.view(bits), zeros[::-1].copy().view(bits)).view(kind)).all()


def test_magnitudes_with_the_sign_of_the_product() -> None:
    numbers = SPECIAL[~np.isnan(SPECIAL)]
    a, b = (one.reshape(-1).copy() for one in np.meshgrid(numbers, numbers))
    for opcode, function in (("min", np.minimum), ("max", np.maximum)):
        found = evaluate(f"{opcode}.xorsign.abs.f32", a.view(np.uint32), b.view(np.uint32)).view(np.float32)
        wanted = np.copysign(function(np.abs(a), np.abs(b)), np.where(np.signbit(a) ^ np.signbit(b), -1, 1))
        np.testing.assert_array_equal(found.view(np.uint32), wanted.astype(np.float32).view(np.uint32))


def test_nan_wins_where_it_is_asked_to() -> None:
    a, b = (one.reshape(-1).copy() for one in np.meshgrid(SPECIAL, SPECIAL))
    for opcode, function in (("min", np.minimum), ("max", np.maximum)):
        found = evaluate(f"{opcode}.NaN.f32", a.view(np.uint32), b.view(np.uint32)).view(np.float32)
        np.testing.assert_array_equal(found, function(a, b))


COMPARED = {"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}


@pytest.mark.parametrize("comparison", [*COMPARED, "ne"])
def test_comparisons_with_nan(comparison: str) -> None:
    a, b = (one.reshape(-1).copy() for one in np.meshgrid(SPECIAL, SPECIAL))
    nan = np.isnan(a) | np.isnan(b)
    holds = (COMPARED[comparison](a, b) if comparison != "ne" else a != b) & ~nan
    given = a.view(np.uint32), b.view(np.uint32)
    np.testing.assert_array_equal(evaluate(f"setp.{comparison}.f32", *given), holds)
    np.testing.assert_array_equal(evaluate(f"setp.{comparison}u.f32", *given), holds | nan)
    other = (np.arange(len(a)) % 2).astype(np.uint8)
    np.testing.assert_array_equal(evaluate(f"setp.{comparison}.xor.f32", *given, other), holds ^ other)
    np.testing.assert_array_equal(evaluate("setp.nan.f32", *given), nan)


def test_flushed_numbers() -> None:
    tiny = np.array([1e-40, -1e-40, 2e-38, 1.0], np.float32)
    found = evaluate("neg.ftz.f32", tiny.view(np.uint32)).view(np.float32)
    np.testing.assert_array_equal(found, np.array([-0.0, 0.0, -2e-38, -1], np.float32))
    assert np.isinf(evaluate("rsqrt.approx.ftz.f32", tiny[:1].view(np.uint32)).view(np.float32)[0])
    root = evaluate("rsqrt.approx.f32", tiny[:1].view(np.uint32)).view(np.float32)[0]
    assert root == np.float32(1 / np.sqrt(np.float64(tiny[0])))


@pytest.mark.parametrize(
    ("opcode", "function"),
    [("ex2.approx.f32", np.exp2), ("lg2.approx.f32", np.log2), ("sin.approx.f32", np.sin), ("cos.approx.f32", np.cos),
     ("tanh.approx.f32", np.tanh), ("sqrt.rn.f32", np.sqrt), ("rcp.rn.f32", np.reciprocal)],
)  # fmt: skip
def test_functions(opcode: str, function: np.ufunc) -> None:
    values = np.linspace(0.01, 20, 999, dtype=np.float32)
    found = evaluate(opcode, values.view(np.uint32)).view(np.float32)
    np.testing.assert_allclose(found, function(values.astype(np.float64)), rtol=2e-7, atol=1e-7)


def test_quotients() -> None:
    a, b = np.float32([1, 6, 1, -1, np.inf]), np.float32([3, 2, 2e38, 2e38, 2e38])
    full = evaluate("div.full.f32", a.view(np.uint32), b.view(np.uint32)).view(np.float32)
    np.testing.assert_array_equal(full, a / b)
    lossy = evaluate("div.approx.f32", a.view(np.uint32), b.view(np.uint32)).view(np.float32)
    np.testing.assert_array_equal(lossy, np.float32([1 / 3, 3, 0, -0.0, np.nan]))


def test_an_opcode_that_is_not_there_is_not_found() -> None:
    for opcode in (
        "cvt.rn.f32",
        "min.rn.f32",
        "fma.rm.bf16x2",
        "cvt.f32.f31",
        "ex2.f32",
        "setp.eq.and",
        "lop3.b64",
        "",
    ):
        assert not numbers().number_signature(opcode.encode()), opcode
