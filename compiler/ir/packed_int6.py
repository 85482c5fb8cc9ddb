"""Six bits a weight: levels on either side of zero, a scale for each group, and the search for it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmc.ir.packed_layout import (
    GROUP,
    TILE,
    PackedFormat,
    Part,
    inverse,
    tile_groups,
    tile_levels,
    to_half,
    untile_levels,
)

_SHRINK = (1.0, 0.96, 0.92)
"""What the largest magnitude of a group is tried at: cutting off one value can round all the others better."""


def int6_format() -> PackedFormat:
    """Levels from -32 to 31, plus 32: four bits as those of int4, then two, for each group of 32 columns."""
    parts = {"quants": Part((1, 6, TILE, 4), torch.uint8), "scales": Part((1, TILE), torch.float16)}
    return PackedFormat(parts, _encode, _decode, "int8", quantized=True)


def _encode(rows: Tensor, columns: int) -> list[Tensor]:
    groups = rows.unflatten(-1, (-1, GROUP))
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    best, error = _trial(groups, largest / -32)
    for part in _SHRINK:
        for scale in (largest * (part / -32), largest * (part / 31)):
            first, _ = _trial(groups, scale)
            q = _rounded(groups, first)
            fitted = (q * groups).sum(-1) / q.square().sum(-1).clamp(min=1)
            for trial in (_trial(groups, scale), _trial(groups, fitted)):
                wins = trial[1] < error
                best, error = torch.where(wins, trial[0], best), torch.where(wins, trial[1], error)
    q = _rounded(groups, best).add_(32).to(torch.uint8)
    low, high = tile_levels(q & 15), (q >> 4).unflatten(-1, (2, 4, 4))  # [NT, 16, G, 2, j, i]
    pairs = high[..., 0, :] | high[..., 1, :] << 2 | high[..., 2, :] << 4 | high[..., 3, :] << 6
    return [torch.cat((low, pairs.permute(0, 2, 3, 1, 4)), dim=2), tile_groups(best.half())]


def _rounded(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups * inverse(scale)[..., None]).round_().clamp_(-32, 31)


def _trial(groups: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A scale as it is stored, and the sum of squared errors of each group with it."""
    stored = to_half(scale)
    return stored, _rounded(groups, stored).mul_(stored[..., None]).sub_(groups).square_().sum(-1)


def _decode(parts: Sequence[Tensor]) -> Tensor:
    quants, scales = parts
    pairs = quants[:, :, 4:].permute(0, 3, 1, 2, 4)  # [NT, 16, G, 2, i]
    high = torch.stack([pairs >> 2 * j & 3 for j in range(4)], dim=-2).flatten(3)
    q = (untile_levels(quants[:, :, :4]) | high << 4).float().sub_(32)
    return q.mul_(scales.transpose(1, 2).float()[..., None]).flatten(2)
