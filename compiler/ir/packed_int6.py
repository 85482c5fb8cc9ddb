"""Six bits a weight: levels on either side of zero, a scale for a group or half of one, and the search for it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmc.ir.packed_layout import (
    GROUP,
    TILE,
    PackedFormat,
    Part,
    columns_first,
    inverse,
    rows_first,
    tile_groups,
    tile_levels,
    to_half,
    untile_levels,
)

_SHRINK = (1.0, 0.98, 0.95)
"""What the largest magnitude of a group is tried at: cutting off one value can round all the others better."""

_FITS = 2
"""How often the best scale so far is fitted to the values that it rounds alike."""


def int6_format(shared: int) -> PackedFormat:
    """Levels from -32 to 31, plus 32: four bits as those of int4, then two. 16 or 32 columns share a scale."""

    def encode(rows: Tensor, columns: int) -> list[Tensor]:
        x = columns_first(rows, shared)
        scale = _search(x)
        levels = rows_first(_rounded(x, scale, torch.empty_like(x)).add_(32).to(torch.uint8), rows)
        tiled = tile_six_bits(levels.unflatten(-1, (-1, GROUP)))
        return [tiled, tile_groups(scale.half().view(rows.shape[0], TILE, -1))]

    def decode(parts: Sequence[Tensor]) -> Tensor:
        quants, scales = parts
        pairs = quants[:, :, 4:].permute(0, 3, 1, 2, 4)  # [NT, 16, G, 2, i]
        high = torch.stack([pairs >> 2 * j & 3 for j in range(4)], dim=-2).flatten(3)
        levels = (untile_levels(quants[:, :, :4]) | high << 4).flatten(2).float().sub_(32)
        rows: Tensor = levels.unflatten(-1, (-1, shared)).mul_(scales.transpose(1, 2).float()[..., None]).flatten(2)
        return rows

    parts = {"quants": Part((1, 6, TILE, 4), torch.uint8), "scales": Part((GROUP // shared, TILE), torch.float16)}
    return PackedFormat(parts, encode, decode, "int8", quantized=True)


def tile_six_bits(q: Tensor) -> Tensor:
    """Levels [NT, 16, G, 32] from 0 to 63, u8: four bits as those of int4, then two, [NT, G, 6, 16, 4]."""
    low, high = tile_levels(q & 15), (q >> 4).unflatten(-1, (2, 4, 4))  # [NT, 16, G, 2, j, i]
    pairs = high[..., 0, :] | high[..., 1, :] << 2 | high[..., 2, :] << 4 | high[..., 3, :] << 6
    return torch.cat((low, pairs.permute(0, 2, 3, 1, 4)), dim=2)


def _search(x: Tensor) -> Tensor:
    """The scale [n] with the least squared error that was found for each column of x [C, n]."""
    low, high = x.amin(0), x.amax(0)
    largest = torch.where(high > -low, high, low)
    q, scratch = torch.empty_like(x), torch.empty_like(x)
    best = _trial(x, largest / -32, q, scratch)
    for part in _SHRINK:
        for scale in (largest * (part / -32), largest * (part / 31)):
            best = _better(best, _trial(x, scale, q, scratch))
    for _ in range(_FITS):
        _rounded(x, best[0], q)
        product = torch.mul(x, q, out=scratch).sum(0)
        fitted = product / torch.mul(q, q, out=scratch).sum(0).clamp_(min=1)
        best = _better(best, _trial(x, fitted, q, scratch))
    return best[0]


def _trial(x: Tensor, scale: Tensor, q: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """A scale as it is stored, and the sum of squared errors with it, [n]. q and scratch are overwritten."""
    stored = to_half(scale)
    return stored, torch.mul(_rounded(x, stored, q), stored, out=scratch).sub_(x).square_().sum(0)


def _rounded(x: Tensor, scale: Tensor, q: Tensor) -> Tensor:
    """The levels of x, written to q."""
    return torch.mul(x, inverse(scale), out=q).round_().clamp_(-32, 31)


def _better(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Group by group the trial with the smaller error, the first when equal."""
    wins = other[1] < one[1]
    return torch.where(wins, other[0], one[0]), torch.where(wins, other[1], one[1])
