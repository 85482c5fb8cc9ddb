"""Weights packed as floats: as they are, or as eight bits with a scale for each row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmc.ir.packed_layout import GROUP, TILE, Arithmetic, PackedFormat, Part, inverse, tile_bytes, untile_bytes

_FP8_MAX = 448.0
_SCALE_MAX = 255.0
"""Kernels multiply a scale by 2^120, the difference of the exponents' biases, before they use it."""


def float_format(dtype: torch.dtype, pair: int) -> PackedFormat:
    """The format that keeps the values of `dtype`: `pair` neighbouring columns of a row lie side by side."""

    def encode(rows: Tensor, columns: int) -> list[Tensor]:
        pairs = rows.to(dtype).unflatten(-1, (-1, pair)).permute(0, 2, 1, 3)
        return [pairs if pair > 1 else pairs.squeeze(-1)]

    def decode(parts: Sequence[Tensor]) -> Tensor:
        (data,) = parts
        pairs = data if pair > 1 else data.unsqueeze(-1)
        return pairs.permute(0, 2, 1, 3).flatten(2).float()

    entry = (GROUP // pair, TILE, pair) if pair > 1 else (GROUP, TILE)
    arithmetic: Arithmetic = "bf16" if dtype == torch.bfloat16 else "f32"
    return PackedFormat({"data": Part(entry, dtype)}, encode, decode, arithmetic, quantized=False)


def encode_fp8(rows: Tensor, columns: int) -> list[Tensor]:
    """e4m3 numbers as bytes, the largest of each row at 448, and the rows' scales."""
    scale = (rows.abs().amax(-1) / _FP8_MAX).clamp(max=_SCALE_MAX)
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 0.0, scale)
    numbers = (rows * inverse(scale)[..., None]).clamp_(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
    return [tile_bytes(numbers.view(torch.uint8)), scale]


def decode_fp8(parts: Sequence[Tensor]) -> Tensor:
    """The inverse of `encode_fp8`, each product rounded once."""
    data, scales = parts
    return untile_bytes(data).contiguous().view(torch.float8_e4m3fn).float().mul_(scales[..., None])
