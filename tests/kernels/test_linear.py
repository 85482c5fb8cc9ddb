"""Linear layers in all formats against numpy references that follow the formulas: integer formats bit for bit."""

import ctypes
import functools
import zlib

import numpy as np
import pytest
import torch
from support.native import HARNESSES, ISAS, Isa, compile_native, run_native

from llmc.codegen.cpp.function import FORMATS
from llmc.ir.packed_formats import unpack

SPANS = {"int4": 1, "int4g64": 2, "int4g128": 4}
"""Groups of 32 that share a scale and a zero."""
INPUTS = (1, 31, 32, 33, 577, 1031)
"""K of the cases of linear_harness.h, in their order."""
NEVER = 1 << 20
VARIANTS = {"one row": (NEVER, NEVER), "flat": (1, NEVER), "many": (1, 1), "usual": (2, 17)}
"""Rows from which the flat variant and that of many rows are used."""

formats = pytest.mark.parametrize("format", FORMATS)
isas = pytest.mark.parametrize("isa", ISAS)


@functools.cache
def library(format: str, isa: Isa) -> ctypes.CDLL:
    return compile_native('#include "linear_harness.h"\n', isa=isa, flags=(f"-DFORMAT={FORMATS[format]}",))


def random_parts(format: str, n: int, k: int) -> list[np.ndarray]:
    """Parts of a weight [n, k], padded as the formats say: whatever is in a format's range."""
    random = np.random.default_rng(zlib.crc32(f"{format} {n} {k}".encode()))
    tiles, groups = -(-n // 16), -(-k // 32)
    inside = np.zeros((tiles * 16, groups * 32), bool)
    inside[:n, :k] = True
    of_rows = inside.reshape(tiles, 16, groups, 32).transpose(0, 2, 1, 3)  # [tile, group, row, input]
    in_groups = of_rows.any(3)
    if format in ("f32", "f16", "bf16"):
        dense = np.where(inside, random.standard_normal(inside.shape), 0).astype(np.float32)
        rows = dense.reshape(tiles, 16, -1).transpose(0, 2, 1)
        if format == "bf16":
            pairs = np.ascontiguousarray(rows.reshape(tiles, -1, 2, 16).transpose(0, 1, 3, 2))
            return [torch.from_numpy(pairs).bfloat16().view(torch.int16).numpy()]
        return [np.ascontiguousarray(rows.astype(np.float32 if format == "f32" else np.float16))]
    if format == "fp8":
        numbers = np.where(inside, random.choice(np.delete(np.arange(256), [127, 255]), inside.shape), 0)
        scales = np.where(inside[:, 0], random.uniform(0.001, 0.02, len(inside)), 0).astype(np.float32)
        data = numbers.astype(np.uint8).reshape(tiles, 16, -1, 4).transpose(0, 2, 1, 3)
        return [np.ascontiguousarray(data), scales.reshape(tiles, 16)]
    in_groups = in_groups[:, :: SPANS.get(format, 1)]
    scales = np.where(in_groups, random.uniform(0.001, 0.02, in_groups.shape), 0).astype(np.float16)
    if format == "int8":
        quants = np.where(of_rows, random.integers(0, 256, of_rows.shape), 128).astype(np.uint8)
        quants = quants.reshape(tiles, groups, 16, 8, 4).transpose(0, 1, 3, 2, 4)
        return [np.ascontiguousarray(quants.reshape(tiles, groups * 8, 16, 4)), scales]
    levels = np.where(of_rows, random.integers(0, 64 if format.startswith("int6") else 16, of_rows.shape), 0).astype(
        np.uint8
    )
    low, high = (levels & 15).reshape(tiles, groups, 16, 2, 4, 4).transpose(3, 0, 1, 4, 2, 5)
    quants = np.ascontiguousarray(low | high << 4)
    if format.startswith("int6"):
        pairs = (levels >> 4).reshape(tiles, groups, 16, 2, 4, 4) << (2 * np.arange(4, dtype=np.uint8))[:, None]
        packed = np.bitwise_or.reduce(pairs, 4).transpose(0, 1, 3, 2, 4)
        if format == "int6g16":
            scales = np.stack((scales, scales[::-1]), 2).reshape(tiles, groups * 2, 16)
        return [np.concatenate((quants, packed), 2), scales]
    if format in SPANS:
        return [quants, scales, np.where(in_groups, random.integers(0, 121, in_groups.shape), 0).astype(np.uint8)]
    return [quants, scales, np.where(in_groups, random.standard_normal(in_groups.shape), 0).astype(np.float16)]


def random_inputs(rows: int, k: int) -> np.ndarray:
    """Rows of ordinary size, a row of zeros, and one row with a wide range."""
    x = np.random.default_rng(k).standard_normal((rows, k)).astype(np.float32)
    x[1:2] = 0
    x[2:3] *= np.float32(10) ** np.random.default_rng(0).integers(-12, 12, (1, k)).astype(np.float32)
    return x


def linear(
    format: str, isa: Isa, parts: list[np.ndarray], x: np.ndarray, n: int, threads: int = 1, variant: str = "usual"
) -> np.ndarray:
    """y [rows, n] of the C++ kernels."""
    x, y = np.ascontiguousarray(x), np.full((len(x), n), np.nan, np.float32)
    data = [part.ctypes.data_as(ctypes.c_void_p) for part in parts] + [None] * (3 - len(parts))
    arguments = x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), *VARIANTS[variant]
    case = INPUTS.index(x.shape[1])
    assert library(format, isa).multiply_all(case, threads, ctypes.c_int64(len(x)), n, *data, *arguments) == 0
    return y


def dense(format: str, parts: list[np.ndarray], n: int, k: int) -> np.ndarray:
    """The weight [n, k] of a float format in float64."""
    if format == "fp8":
        numbers = torch.from_numpy(parts[0]).view(torch.float8_e4m3fn).float().numpy()
        rows = numbers.transpose(0, 2, 1, 3).reshape(len(parts[0]), 16, -1) * parts[1][..., None]
    elif format == "bf16":
        wide = (parts[0].view(np.uint16).astype(np.uint32) << 16).view(np.float32)  # [tiles, pairs, 16, 2]
        rows = wide.transpose(0, 2, 1, 3)
    else:
        rows = parts[0].transpose(0, 2, 1)
    return rows.reshape(parts[0].shape[0] * 16, -1)[:n, :k].astype(np.float64)


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers [rows, groups, 32] and scales [rows, groups] of activations."""
    padded = np.zeros((len(x), -(-x.shape[1] // 32) * 32), np.float32)
    padded[:, : x.shape[1]] = x
    grouped = padded.reshape(len(x), -1, 32)
    scales = np.abs(grouped).max(2) / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    return np.rint(grouped * inverse[..., None]).astype(np.int64), scales


def integer_linear(format: str, parts: list[np.ndarray], x: np.ndarray, n: int) -> np.ndarray:
    """y [rows, n]: exact integer sums of groups, one fused multiply-add a group (exact in float64, then rounded)."""
    quants, weight_scales = parts[0], parts[1].astype(np.float32)
    span = SPANS.get(format, 1)
    tiles, groups = len(quants), quants.shape[1] // (8 if format == "int8" else 1)
    if format == "int8":
        levels = quants.reshape(tiles, groups, 8, 16, 4).transpose(0, 1, 3, 2, 4).reshape(tiles, groups, 16, 32)
        levels = levels.astype(np.int64) - 128
    else:
        nibbles = quants[:, :, :4]
        both = np.stack((nibbles & 15, nibbles >> 4), axis=2)  # [tile, group, half, j, row, i]
        levels = both.transpose(0, 1, 4, 2, 3, 5).reshape(tiles, groups, 16, 32).astype(np.int64)
    if format.startswith("int6"):
        high = np.stack([quants[:, :, 4:] >> 2 * j & 3 for j in range(4)], axis=3)  # [tile, group, half, j, row, i]
        levels += 16 * high.transpose(0, 1, 4, 2, 3, 5).reshape(levels.shape).astype(np.int64) - 32
    if format in SPANS:
        levels = 8 * levels - parts[2].astype(np.int64).repeat(span, 1)[:, :groups, :, None]
    inputs, scales = quantized(x)
    y = np.zeros((len(x), tiles, 16), np.float32)
    parts_of = 2 if format == "int6g16" else 1
    for g, part in ((g, part) for g in range(groups) for part in range(parts_of)):
        columns = slice(16 * part, 16 * part + 16) if parts_of == 2 else slice(None)
        sums = np.einsum("tri,si->str", levels[:, g, :, columns], inputs[:, g, columns])
        scale = scales[:, g] * np.float32(0.125 if format in SPANS else 1)
        factor = weight_scales[:, (g * parts_of + part) // span] * scale[:, None, None]
        y = (sums * factor.astype(np.float64) + y).astype(np.float32)
        if format == "int4m":
            total = scales[:, g] * inputs[:, g].sum(1).astype(np.float32)
            y = (parts[2][:, g].astype(np.float64) * total[:, None, None].astype(np.float64) + y).astype(np.float32)
    return y.reshape(len(x), -1)[:, :n]


@isas
@formats
@pytest.mark.parametrize("k", INPUTS)
def test_values(format: str, isa: Isa, k: int) -> None:
    for n in (1, 15, 16, 17, 100, 211):
        parts, x = random_parts(format, n, k), random_inputs(5, k)
        y = linear(format, isa, parts, x, n)
        if format.startswith("int"):
            expected = integer_linear(format, parts, x, n)
            if isa != "portable":
                np.testing.assert_array_equal(y, expected)
            weight = unpack([torch.from_numpy(part) for part in parts], format, n, k).numpy()
            size = np.abs(x).astype(np.float64) @ np.abs(weight).T
        else:
            weight = dense(format, parts, n, k)
            rounded = torch.from_numpy(x).bfloat16().float().numpy() if format == "bf16" else x
            expected = rounded.astype(np.float64) @ weight.T
            size = np.abs(rounded).astype(np.float64) @ np.abs(weight).T
        assert (np.abs(y - expected) <= 2e-6 * size).all()


@isas
@formats
def test_bits_do_not_depend_on_rows_threads_or_variant(format: str, isa: Isa) -> None:
    for n, k in ((211, 577), (100, 33), (130, 32)):
        parts, x = random_parts(format, n, k), random_inputs(129, k)
        expected = linear(format, isa, parts, x, n)
        for rows in (1, 2, 3, 5, 8, 17, 64, 129):
            for variant in VARIANTS:
                y = linear(format, isa, parts, x[:rows], n, threads=1 + rows % 3, variant=variant)
                np.testing.assert_array_equal(y, expected[:rows], err_msg=f"{rows} rows, {variant}")
        np.testing.assert_array_equal(linear(format, isa, parts, x[77:78], n), expected[77:78])


@isas
@pytest.mark.parametrize("format", ["int8", "int6g16", "int4", "int4g128", "bf16", "fp8"])
def test_more_rows_than_are_taken_at_a_time(format: str, isa: Isa) -> None:
    parts, x = random_parts(format, 130, 33), random_inputs(1100, 33)
    y = linear(format, isa, parts, x, 130, threads=2)
    for first in (0, 505, 1093):
        np.testing.assert_array_equal(linear(format, isa, parts, x[first : first + 7], 130), y[first : first + 7])


@isas
@formats
def test_what_is_not_finite_is_seen(format: str, isa: Isa) -> None:
    parts, x = random_parts(format, 17, 33), random_inputs(4, 33)
    x[0, 32], x[1, 3] = np.nan, np.inf
    y = linear(format, isa, parts, x, 17)
    assert not np.isfinite(y[:2]).any()
    assert np.isfinite(y[2:]).all()


@isas
@pytest.mark.parametrize("format", ["int8", "int6", "int4", "int4m"])
def test_groups_too_small_for_a_scale_are_zero(format: str, isa: Isa) -> None:
    parts, x = random_parts(format, 17, 33), np.full((2, 33), 1e-37, np.float32)
    assert not linear(format, isa, parts, x, 17).any()


@formats
def test_the_layout_is_that_of_the_compiler(format: str) -> None:
    parts = [torch.from_numpy(part) for part in random_parts(format, 50, 70)]
    if format == "bf16":
        parts = [parts[0].view(torch.bfloat16)]
    weight = unpack(parts, format, 50, 70).double().numpy()
    x = np.eye(70, dtype=np.float32)
    arrays = [part.view(torch.int16).numpy() if part.dtype == torch.bfloat16 else part.numpy() for part in parts]
    if format.startswith("int"):
        expected = integer_linear(format, arrays, x, 50).T  # an input of 1 is 127 steps of 1/127
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(weight, dense(format, arrays, 50, 70))


@pytest.mark.parametrize(
    ("format", "isa"),
    [
        ("int4", "avx512"),
        ("bf16", "avx512"),
        ("int4m", "avx2"),
        ("int8", "portable"),
        ("int6", "avx512"),
        ("int6g16", "avx2"),
        ("int4g64", "portable"),
        ("int4g128", "avx512"),
        ("fp8", "avx512"),
    ],
)
def test_under_sanitizers(format: str, isa: Isa) -> None:
    flags = (f"-DFORMAT={FORMATS[format]}",)
    assert run_native(HARNESSES / "linear_sanitized.cpp", isa=isa, flags=flags) == "ok\n"
