"""Stored blocks repacked: the same numbers as the gguf package dequantizes."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from torch.library import opcheck

from llmc.errors import InvalidGraph
from llmc.ir.packed_blocks import STORED_FORMATS, pack_blocks
from llmc.ir.packed_formats import unpack

EXACT = {"Q4_0": 1e-7, "Q4_1": 1e-7, "Q8_0": 0.0, "Q4_K": 1e-3, "Q3_K": 1e-3, "Q6_K": 1e-3}
"""Largest difference, relative to the largest value: rounding of a sum to fp32, and of the K types' scales to fp16."""


def stored(kind: str, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random blocks with scales of an ordinary size, and their values."""
    type_ = GGMLQuantizationType[kind]
    elements, size = GGML_QUANT_SIZES[type_]
    draw = np.random.default_rng(rows)
    blocks = draw.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    scales = 2 if kind in ("Q4_1", "Q4_K") else 1
    numbers = (draw.random((*blocks.shape[:2], scales)) / 8 + 0.01).astype(np.float16).view(np.uint8)
    blocks[..., slice(-2, None) if kind in ("Q3_K", "Q6_K") else slice(2 * scales)] = numbers
    flat = blocks.reshape(rows, -1)
    return torch.from_numpy(flat), torch.from_numpy(dequantize(flat, type_))


@pytest.mark.parametrize("kind", STORED_FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (37, 512), (1100, 256)])
def test_repacked_blocks_are_what_the_file_means(kind: str, rows: int, columns: int) -> None:
    blocks, values = stored(kind, rows, columns)
    found = unpack(pack_blocks(blocks, kind, columns), STORED_FORMATS[kind], rows, columns)
    assert (found - values).abs().max() <= EXACT[kind] * values.abs().max()


@pytest.mark.parametrize("kind", STORED_FORMATS)
def test_packing_blocks_is_a_lawful_op_and_pads_with_nothing(kind: str) -> None:
    blocks, _ = stored(kind, 17, 256)
    opcheck(torch.ops.llmc.pack_blocks.default, (blocks, kind, 256))
    opcheck(torch.ops.llmc.pack_blocks.default, (torch.stack([blocks, blocks]), kind, 256))
    padded = unpack(pack_blocks(blocks, kind, 256), STORED_FORMATS[kind], 32, 256)
    assert padded[17:].abs().sum() == 0


def test_experts_begin_with_a_tile_of_their_own() -> None:
    blocks, _ = stored("Q4_K", 40, 256)
    parts = pack_blocks(blocks.unflatten(0, (2, 20)), "Q4_K", 256)
    for part, own in zip(parts, pack_blocks(blocks[20:], "Q4_K", 256), strict=True):
        assert torch.equal(part[2:], own)


def test_other_types_are_refused() -> None:
    with pytest.raises(InvalidGraph, match="stored type 'Q5_K': expected one of Q3_K, Q4_0"):
        pack_blocks(torch.zeros(1, 176, dtype=torch.uint8), "Q5_K", 256)
