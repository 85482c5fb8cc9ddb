"""The rest of the language in the interpreter: reductions, scans, sorting, library functions, types of operations."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import triton.language as tl
from support.triton_interpreter import install, launch, launching, load_kernels, shortcuts
from support.triton_interpreter.values import Value
from triton.language.semantic import IncompatibleTypeErrorImpl, TritonSemantic
from triton.runtime import interpreter as stock

kernels = load_kernels(
    """
import triton
import triton.language as tl
from triton.language.extra import libdevice

@triton.jit
def reduces(x, o, OP: tl.constexpr, AXIS: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    block = tl.load(x + m[:, None] * N + n[None, :])
    if OP == "sum": r = tl.sum(block, AXIS)
    elif OP == "max": r = tl.max(block, AXIS)
    elif OP == "min": r = tl.min(block, AXIS)
    elif OP == "argmax": r = tl.argmax(block, AXIS)
    elif OP == "argmin": r = tl.argmin(block, AXIS)
    elif OP == "xor": r = tl.xor_sum(block, AXIS)
    tl.store(o + tl.arange(0, o_size(AXIS, M, N)), r.to(o.dtype.element_ty))

@triton.constexpr_function
def o_size(axis, m, n):
    return m if axis == 1 else n

@triton.jit
def sum_of_all(x, o, M: tl.constexpr, N: tl.constexpr):
    block = tl.load(x + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :])
    tl.store(o, tl.sum(block))
    tl.store(o + 1, tl.max(tl.sum(block, 1, keep_dims=True)))

@triton.jit
def scans(x, o, REVERSE: tl.constexpr, AXIS: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(o + at, tl.cumsum(tl.load(x + at), AXIS, reverse=REVERSE))

@triton.jit
def welford(count1, mean1, m1, count2, mean2, m2):
    count = count1 + count2
    delta = mean2 - mean1
    part = tl.where(count == 0.0, 0.0, count2 / count)
    return count, mean1 + delta * part, m1 + m2 + delta * delta * count1 * part

@triton.jit
def moments(x, mean, variance, N: tl.constexpr):
    values = tl.load(x + tl.program_id(0) * N + tl.arange(0, N))
    n, found, square = tl.reduce((tl.full((N,), 1.0, tl.float32), values, tl.zeros((N,), tl.float32)), 0, welford)
    tl.store(mean + tl.program_id(0), found)
    tl.store(variance + tl.program_id(0), square / n)

@triton.jit
def left(a, b):
    return a

@triton.jit
def first_and_running(x, first, running, N: tl.constexpr):
    values = tl.load(x + tl.arange(0, N))
    tl.store(first, tl.reduce(values, 0, left))
    tl.store(running + tl.arange(0, N), tl.associative_scan(values, 0, left))

@triton.jit
def sorts(x, o, top, N: tl.constexpr):
    values = tl.load(x + tl.arange(0, N))
    tl.store(o + tl.arange(0, N), tl.sort(values))
    tl.store(top + tl.arange(0, 4), tl.topk(values, 4))

@triton.jit
def library(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(o + i, libdevice.tanh(v))
    tl.store(o + N + i, libdevice.erf(v))
    tl.store(o + 2 * N + i, tl.extra.cuda.libdevice.exp(v))
    tl.store(o + 3 * N + i, tl.math.rsqrt(tl.abs(v)))
    tl.store(o + 4 * N + i, tl.erf(v))
    tl.store(o + 5 * N + i, libdevice.pow(tl.abs(v), 1.5))
    tl.store(o + 6 * N + i, tl.sigmoid(v))

@triton.jit
def unknown_function(x):
    tl.store(x, libdevice.yn(2, tl.load(x)))

@triton.jit
def shapes(x, o):
    block = tl.reshape(tl.load(x + tl.arange(0, 32)), (4, 4, 2))
    even, odd = tl.split(block)
    turned = tl.trans(even)
    joined = tl.interleave(turned, odd)
    tl.store(o + tl.arange(0, 32), tl.reshape(tl.flip(joined, 1), (32,)))

@triton.jit
def halves(both, o, SCALE):
    i = tl.arange(0, 16)
    tl.store(o + i, (tl.load(both[0] + i) + tl.load(both[1] + i)) * SCALE)

@triton.jit
def promises(n, o):
    tl.multiple_of(n, 16)
    tl.store(o, n)

@triton.jit
def asserts(n, o):
    tl.device_assert(n < 10, "n is small")
    tl.store(o, n)
"""
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("operation", ["sum", "max", "min", "argmax", "argmin"])
def test_reductions(operation: str, axis: int, dtype: torch.dtype) -> None:
    x = torch.randint(-50, 50, (16, 32)).to(dtype)
    reduce = {"sum": torch.sum, "max": torch.amax, "min": torch.amin}.get(operation, getattr(torch, operation))
    indices = operation.startswith("arg")
    wanted = (_leftmost(x, axis, operation) if indices else reduce(x, axis)).to(torch.int32 if indices else dtype)
    found = torch.zeros_like(wanted)
    launch(kernels.reduces, 1, x, found, operation, axis, 16, 32)
    assert torch.equal(found, wanted)


def _leftmost(x: torch.Tensor, axis: int, operation: str) -> torch.Tensor:
    values = x.numpy()
    return torch.from_numpy(values.argmax(axis) if operation == "argmax" else values.argmin(axis))


def test_a_maximum_passes_over_nan_and_an_index_as_well() -> None:
    x = torch.randn(16, 32)
    x[::2, 5] = torch.nan
    x[3] = torch.nan
    found, index = torch.zeros(16), torch.zeros(16, dtype=torch.int32)
    launch(kernels.reduces, 1, x, found, "max", 1, 16, 32)
    launch(kernels.reduces, 1, x, index, "argmax", 1, 16, 32)
    assert found[3].isnan() and torch.equal(x.nan_to_num(-9).amax(1)[4:], found[4:])
    assert torch.equal(x.nan_to_num(-9).argmax(1)[4:].int(), index[4:])


def test_a_sum_in_bfloat16_rounds_at_each_step() -> None:
    x = torch.randn(16, 32).bfloat16()
    wanted = x
    while wanted.shape[1] > 1:
        wanted = wanted[:, ::2] + wanted[:, 1::2]
    found = torch.zeros(16, dtype=torch.bfloat16)
    launch(kernels.reduces, 1, x, found, "sum", 1, 16, 32)
    assert torch.equal(found, wanted[:, 0]) and not torch.equal(found, x.float().sum(1).bfloat16())


def test_small_integers_are_summed_in_32_bits() -> None:
    x = torch.full((16, 32), 127, dtype=torch.int8)
    found = torch.zeros(16, dtype=torch.int32)
    launch(kernels.reduces, 1, x, found, "sum", 1, 16, 32)
    assert found.tolist() == [127 * 32] * 16
    x = torch.randint(0, 1 << 30, (16, 32), dtype=torch.int32)
    launch(kernels.reduces, 1, x, found, "xor", 1, 16, 32)
    assert found.tolist() == np.bitwise_xor.reduce(x.numpy(), 1).tolist()


def test_reductions_of_everything_keep_scalars_scalar() -> None:
    x, o = torch.randn(8, 16), torch.zeros(2)
    launch(kernels.sum_of_all, 1, x, o, 8, 16)
    torch.testing.assert_close(o, torch.stack([x.sum(), x.sum(1).max()]))


@pytest.mark.parametrize(("reverse", "axis"), [*itertools.product([False, True], [0, 1])])
def test_scans(reverse: bool, axis: int) -> None:
    x = torch.randint(-50, 50, (8, 16)).float()
    o = torch.zeros(8, 16)
    launch(kernels.scans, 1, x, o, reverse, axis, 8, 16)
    wanted = x.flip(axis).cumsum(axis).flip(axis) if reverse else x.cumsum(axis)
    assert torch.equal(o, wanted)


def test_reductions_with_a_function_of_one_s_own() -> None:
    x, mean, variance = torch.randn(4, 64), torch.zeros(4), torch.zeros(4)
    launch(kernels.moments, 4, x, mean, variance, 64)
    torch.testing.assert_close(mean, x.mean(1))
    torch.testing.assert_close(variance, x.var(1, correction=0))
    first, running = torch.zeros(1), torch.zeros(64)
    launch(kernels.first_and_running, 1, x, first, running, 64)
    assert first[0] == x[0, 0] and (running == x[0, 0]).all()


def test_sorting() -> None:
    x, o, top = torch.randn(32), torch.zeros(32), torch.zeros(4)
    launch(kernels.sorts, 1, x, o, top, 32)
    assert torch.equal(o, x.sort().values) and torch.equal(top.sort().values, x.sort().values[-4:])


def test_library_functions() -> None:
    x, o = torch.randn(64), torch.zeros(7, 64)
    launch(kernels.library, 1, x, o, 64).assert_written_once(o)
    exact = x.double()
    wanted = [exact.tanh(), exact.erf(), exact.exp(), exact.abs().rsqrt(), exact.erf(), exact.abs() ** 1.5]
    torch.testing.assert_close(o.double(), torch.stack([*wanted, exact.sigmoid()]), rtol=1e-6, atol=1e-6)


def test_a_library_function_without_a_model_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="__nv_ynf has no model"):
        launch(kernels.unknown_function, 1, torch.ones(1))


def test_shapes() -> None:
    x, o = torch.randn(32), torch.zeros(32)
    launch(kernels.shapes, 1, x, o)
    even, odd = x.reshape(4, 4, 2).unbind(-1)
    assert torch.equal(o.reshape(4, 8), torch.stack([even.t(), odd], -1).reshape(4, 8).flip(1))


def test_tuples_of_tensors_and_floats_are_arguments() -> None:
    a, b, o = torch.randn(16).bfloat16(), torch.randn(16).bfloat16(), torch.zeros(16)
    launch(kernels.halves, 1, (a, b), o, 0.3)
    assert torch.equal(o, (a + b).float() * 0.3)  # a float argument has 32 bits, so the product has
    with pytest.raises(IndexError, match=r"both\[1\]"):
        launch(kernels.halves, 1, (a, b[:8]), o, 0.3)


def test_promises_and_assertions_are_checked() -> None:
    o = torch.zeros(1, dtype=torch.int32)
    launch(kernels.promises, 1, 32, o)
    with pytest.raises(ValueError, match="24 is a multiple of 16"):
        launch(kernels.promises, 1, 24, o)
    launch(kernels.asserts, 1, 9, o)
    with pytest.raises(AssertionError, match="n is small"):
        launch(kernels.asserts, 1, 10, o)


TYPES = [tl.int1, tl.int8, tl.uint8, tl.int32, tl.uint32, tl.int64, tl.float16, tl.bfloat16, tl.float32, tl.float64]
SHAPES: list[tuple[int, ...]] = [(), (4,), (1, 4), (2, 1), (2, 4), (1, 1), (8, 2, 4)]
Outcome = tuple[str, tuple[int, ...], str, tuple[int, ...]] | str


def _outcome(make: Callable[[], tuple[tl.tensor, tl.tensor]]) -> Outcome:
    try:
        lhs, rhs = make()
    except (ValueError, TypeError, AssertionError, IncompatibleTypeErrorImpl) as error:
        return type(error).__name__
    left, right = lhs.handle.data, rhs.handle.data
    shapes = [tuple(size.value for size in one.shape) for one in (lhs, rhs)]
    assert [left.shape or (1,), right.shape or (1,)] == [shape or (1,) for shape in shapes]
    return str(lhs.type), shapes[0], str(rhs.type), shapes[1]


def test_short_ways_give_the_types_and_shapes_that_the_language_gives() -> None:
    install()
    builder = stock.interpreter_builder
    plain = TritonSemantic(builder)

    def value(kind: tl.dtype, shape: tuple[int, ...]) -> tl.tensor:
        data = np.ones(shape or (1,), stock._get_np_dtype(kind))
        return tl.tensor(Value(data, kind), tl.block_type(kind, list(shape)) if shape else kind)

    compared = 0
    with launching.language(), np.errstate(all="ignore"):
        operands = [lambda k=kind, s=shape: value(k, s) for kind in TYPES for shape in SHAPES[:5]]
        operands += [lambda s=shape: value(tl.int32, s) for shape in SHAPES[5:]]
        operands += [lambda s=shape: value(tl.pointer_type(tl.float32), s) for shape in SHAPES]
        operands += [lambda n=number: n for number in (0, -3, 1 << 20, 1 << 40, 2.5, -0.0, float("inf"), 1e300, True)]
        short = stock.interpreter_semantic
        assert isinstance(short, shortcuts.Semantic)
        for left, right in itertools.product(operands, repeat=2):
            for division in (False, True):
                outcomes = [
                    _outcome(lambda: way.binary_op_type_checking_impl(left(), right(), True, True, True, division))  # noqa: B023
                    for way in (plain, short)
                ]
                assert outcomes[0] == outcomes[1], (left(), right())
                compared += 1
    assert compared > 9000


def test_without_the_variable_the_harness_says_so() -> None:
    code = "from support.triton_interpreter import install; install()"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path.endswith("tests"))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "TRITON_INTERPRET=1 was not set when triton was imported" in done.stderr


def test_the_language_is_itself_again_after_a_launch() -> None:
    before = tl.load, tl.range, tl.core.tensor.__add__, tl.core.block_type.__init__, tl.core.dtype.__eq__
    launch(kernels.sum_of_all, 1, torch.randn(8, 16), torch.zeros(2), 8, 16)
    with pytest.raises(NotImplementedError):
        launch(kernels.unknown_function, 1, torch.ones(1))
    assert before == (tl.load, tl.range, tl.core.tensor.__add__, tl.core.block_type.__init__, tl.core.dtype.__eq__)
