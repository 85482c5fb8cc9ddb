"""Mixtures of experts against the reference of the packed op."""

import ctypes
import functools

import pytest
import torch
from support.native import HARNESSES, ISAS, Isa, compile_native, run_native
from torch import Tensor

from llmc.ir.packed import moe_packed
from llmc.ir.packed_formats import pack

SHAPES = (
    ("f32", "f32", 8, 2, 48, 32, True), ("int4", "int8", 5, 3, 37, 83, True), ("bf16", "f16", 4, 1, 64, 48, False),
    ("int8", "int4m", 3, 2, 96, 16, True),
)  # fmt: skip
"""Formats, experts, experts of a token, D, F and whether gated, as in moe_harness.h."""
TOLERANCE = {"f32": 1e-5, "int4": 1e-4, "bf16": 2e-2, "int8": 1e-4}

HARNESS = """
#include "moe_harness.h"
template <class F>
int64_t with_shape(int number, F f) {
  return number == 0 ? f(Even{}) : number == 1 ? f(Odd{}) : number == 2 ? f(Plain{}) : f(Narrow{});
}
EXPORT int mixture(int shape, int threads, const Call* call) {
  return int(with_shape(shape, [&](auto s) { return int64_t(run<decltype(s)>(*call, threads)); }));
}
EXPORT int64_t shared_size(int shape) {
  return with_shape(shape, [](auto s) { return int64_t(moe_shared_bytes<decltype(s)>()); });
}
"""

Three = ctypes.c_void_p * 3


class Call(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64), ("up", Three), ("down", Three),
        *((name, ctypes.c_void_p) for name in ("up_bias", "down_bias", "x", "ids", "gates", "y", "shared")),
        ("limit", ctypes.c_float), ("up_offset", ctypes.c_float), ("flat", ctypes.c_int), ("gemm", ctypes.c_int),
    )  # fmt: skip


@functools.cache
def library(isa: Isa) -> ctypes.CDLL:
    built = compile_native(HARNESS, isa=isa)
    built.shared_size.restype = ctypes.c_int64
    return built


class Mixture:
    """Random experts of one of the shapes, natively and by the reference."""

    def __init__(self, shape: int, bias: bool = True, limits: tuple[float, float] = (0.0, 0.0)) -> None:
        self.shape, self.limits = shape, limits
        up_format, down_format, self.experts, self.slots, self.size, self.width, self.gated = SHAPES[shape]
        generator = torch.Generator().manual_seed(shape)
        rows = 2 * self.width if self.gated else self.width
        self.formats = up_format, down_format
        self.up = pack(torch.randn(self.experts, rows, self.size, generator=generator) / self.size**0.5, up_format)
        self.down = pack(
            torch.randn(self.experts, self.size, self.width, generator=generator) / self.width**0.5, down_format
        )
        self.up_bias = torch.randn(self.experts, rows, generator=generator) if bias else None
        self.down_bias = torch.randn(self.experts, self.size, generator=generator) if bias else None

    def inputs(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(rows)
        scores = torch.rand(rows, self.experts, generator=generator)
        gates, ids = scores.topk(self.slots)
        return torch.randn(rows, self.size, generator=generator), ids, gates

    def native(
        self, isa: Isa, x: Tensor, ids: Tensor, gates: Tensor, threads: int, crossover: tuple[int, int]
    ) -> Tensor:
        x, ids, gates = x.contiguous(), ids.contiguous(), gates.contiguous()
        y = torch.full_like(x, torch.nan)
        shared = torch.empty(x.shape[0] * library(isa).shared_size(self.shape) // 8 + 8, dtype=torch.int64)
        start = -shared.data_ptr() % 64
        pointers = [None if t is None else t.data_ptr() for t in (self.up_bias, self.down_bias, x, ids, gates, y)]
        call = Call(
            x.shape[0],
            Three(*(part.data_ptr() for part in self.up)),
            Three(*(part.data_ptr() for part in self.down)),
            *pointers, shared.data_ptr() + start, *self.limits, *crossover,
        )  # fmt: skip
        assert library(isa).mixture(self.shape, threads, ctypes.byref(call)) == 0
        return y

    def reference(self, x: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
        result = moe_packed(
            x, ids, gates, self.up, self.up_bias, self.down, self.down_bias, *self.formats, self.experts, self.width,
            "silu", self.gated, *self.limits,
        )  # fmt: skip
        return result


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_against_the_reference(isa: Isa, shape: int) -> None:
    tolerance = TOLERANCE[SHAPES[shape][0]]
    for bias, limits in ((True, (0.5, 1.0)), (False, (0.0, 0.0))):
        mixture = Mixture(shape, bias, limits)
        for rows in (1, 2, 5, 17, 67):
            given = mixture.inputs(rows)
            y = mixture.native(isa, *given, threads=2, crossover=(2, 17))
            torch.testing.assert_close(y, mixture.reference(*given), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_bits_depend_on_the_token_alone(isa: Isa, shape: int) -> None:
    mixture = Mixture(shape)
    x, ids, gates = mixture.inputs(40)
    expected = mixture.native(isa, x, ids, gates, threads=1, crossover=(2, 17))
    for threads, crossover in ((2, (2, 17)), (3, (1, 1)), (1, (100, 100)), (2, (2, 100))):
        assert torch.equal(mixture.native(isa, x, ids, gates, threads, crossover), expected)
    for t in (0, 7, 39):
        one = (tensor[t : t + 1] for tensor in (x, ids, gates))
        assert torch.equal(mixture.native(isa, *one, threads=2, crossover=(2, 17)), expected[t : t + 1])


@pytest.mark.parametrize("isa", ISAS)
def test_every_token_may_choose_the_same_experts(isa: Isa) -> None:
    mixture = Mixture(0)
    x, ids, gates = mixture.inputs(33)
    ids = torch.tensor([6, 1]).expand(33, 2)
    y = mixture.native(isa, x, ids, gates, threads=2, crossover=(2, 17))
    torch.testing.assert_close(y, mixture.reference(x, ids, gates), rtol=1e-5, atol=1e-5)


def test_under_sanitizers() -> None:
    assert run_native(HARNESSES / "moe_sanitized.cpp", isa="avx512") == "ok\n"
