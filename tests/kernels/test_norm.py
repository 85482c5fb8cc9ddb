"""Norms of single rows against the references of the dialect."""

import ctypes

import pytest
import torch
from support.native import ISAS, Isa
from support.native_rows import SIZES, pointer, row_kernels, size, strided

from llmc.ir.ops import layer_norm, rms_norm

isas = pytest.mark.parametrize("isa", ISAS)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@isas
@pytest.mark.parametrize("step", [1, 3])
def test_rms_norm(isa: Isa, step: int) -> None:
    for n in SIZES:
        buffer, x = strided(n, step, seed=n)
        for type_, dtype in enumerate(DTYPES):
            weight, y = torch.randn(n).to(dtype), torch.empty(n)
            for given, offset in ((weight, 0.0), (weight, 1.0), (None, 0.0)):
                values = ctypes.c_float(1e-5), ctypes.c_float(offset), pointer(y)
                row_kernels(isa).rms(type_, pointer(buffer), size(step), size(n), pointer(given), *values)
                wide = None if given is None else given.float()
                torch.testing.assert_close(y, rms_norm(x, wide, 1e-5, offset, True), rtol=2e-6, atol=1e-6)


@isas
@pytest.mark.parametrize("step", [1, 3])
def test_layer_norm(isa: Isa, step: int) -> None:
    for n in SIZES:
        buffer, x = strided(n, step, seed=n)
        buffer += 3
        weight, bias, y = torch.randn(n), torch.randn(n), torch.empty(n)
        for w, b in ((weight, bias), (weight, None), (None, None)):
            arguments = pointer(w), pointer(b), ctypes.c_float(1e-5), pointer(y)
            row_kernels(isa).layer(pointer(buffer), size(step), size(n), *arguments)
            exact = layer_norm(
                x.double(), None if w is None else w.double(), None if b is None else b.double(), 1e-5, True
            )
            torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=3e-5 if n == 1 else 1e-5)


@isas
def test_rms_norm_in_place(isa: Isa) -> None:
    x = torch.randn(130)
    expected = rms_norm(x, None, 1e-6, 0.0, True)
    row_kernels(isa).rms(0, pointer(x), size(1), size(130), None, ctypes.c_float(1e-6), ctypes.c_float(0), pointer(x))
    torch.testing.assert_close(x, expected, rtol=2e-6, atol=1e-6)


@isas
def test_zeros_and_nans(isa: Isa) -> None:
    y, zeros = torch.empty(33), torch.zeros(33)
    values = None, ctypes.c_float(1e-6), ctypes.c_float(0), pointer(y)
    row_kernels(isa).rms(0, pointer(zeros), size(1), size(33), *values)
    assert torch.equal(y, zeros)
    bad = torch.zeros(33)
    bad[32] = torch.nan
    row_kernels(isa).rms(0, pointer(bad), size(1), size(33), *values)
    assert y.isnan().all()
