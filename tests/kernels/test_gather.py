"""Rows of packed weights and of plain tables."""

import pytest
import torch
from support.native import ISAS, Isa
from support.native_rows import pointer, row_kernels, size

from llmc.ir.packed_formats import FORMATS, pack, unpack

ORDER = ("f32", "f16", "bf16", "int8", "int4", "int4m", "fp8", "int6", "int4g64", "int4g128", "int6g16")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", ORDER)
def test_packed_rows(isa: Isa, format: str) -> None:
    assert set(ORDER) == set(FORMATS)
    for k in (1, 31, 64, 83):
        weight = torch.randn(37, k, generator=torch.Generator().manual_seed(k))
        parts = pack(weight, format)
        expected = unpack(parts, format, 37, k)
        pointers = [pointer(part) for part in (*parts, None, None)[:3]]
        for row in (0, 1, 15, 16, 31, 36):
            y = torch.full((k + 16,), 7.0)
            assert row_kernels(isa).embed(ORDER.index(format), k, *pointers, size(row), pointer(y))
            assert torch.equal(y[:k], expected[row]), (k, row)
            assert torch.equal(y[k:], torch.full((16,), 7.0))


@pytest.mark.parametrize("isa", ISAS)
def test_plain_tables(isa: Isa) -> None:
    for type_, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16)):
        for columns in (1, 16, 33, 100):
            table, y = torch.randn(5, columns).to(dtype), torch.empty(columns)
            for row in range(5):
                row_kernels(isa).plain(type_, pointer(table), size(row), size(columns), pointer(y))
                assert torch.equal(y, table[row].float())
