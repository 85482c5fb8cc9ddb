"""Rotation of single heads against the reference of the dialect."""

import pytest
import torch
from support.native import ISAS, Isa
from support.native_rows import pointer, row_kernels, size, strided

from llmc.ir.ops import rope


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_row(isa: Isa, interleaved: bool) -> None:
    for n, rotated in ((2, 2), (3, 2), (16, 10), (64, 64), (80, 32), (96, 34), (128, 128), (130, 130)):
        for steps in ((1, 1, 1), (3, 1, 2)):
            (x, head), (c, cos), (s, sin) = (
                strided(length, step, seed)
                for seed, (length, step) in enumerate(zip((n, rotated, rotated), steps, strict=True))
            )
            y = torch.empty(n)
            sizes = (*map(size, steps), n, rotated)
            row_kernels(isa).rotate(int(interleaved), pointer(x), pointer(c), pointer(s), *sizes, pointer(y))
            torch.testing.assert_close(y, rope(head, cos, sin, interleaved), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_head_in_place(isa: Isa, interleaved: bool) -> None:
    head, cos, sin = torch.randn(64), torch.randn(48), torch.randn(48)
    expected = rope(head, cos, sin, interleaved)
    row_kernels(isa).rotate_head(int(interleaved), pointer(head), pointer(cos), pointer(sin))
    torch.testing.assert_close(head, expected, rtol=1e-6, atol=1e-6)
