"""Four bits a weight: levels of a grid with a scale and a zero in eighths of a step, and the search for the grid."""

from collections.abc import Callable, Sequence

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

LEVELS = Part((1, 4, TILE, 4), torch.uint8)
"""The part that holds the levels."""

_SHRINK = ((1.0, 1.0), (1.0, 0.9), (0.9, 1.0), (0.9, 0.9))
"""What the ends of the range of a group are tried at: cutting off a few values can round all the others better."""


def int4_format(columns: int) -> PackedFormat:
    """The format in which so many columns share a grid: a multiple of 32."""
    parts = {
        "quants": LEVELS,
        "scales": Part((1, TILE), torch.float16, columns),
        "zeros": Part((1, TILE), torch.uint8, columns),
    }
    return PackedFormat(parts, _encoder(columns), _decoder(columns), "int8", quantized=True)


def _encoder(shared: int) -> Callable[[Tensor, int], list[Tensor]]:
    def encode(rows: Tensor, columns: int) -> list[Tensor]:
        width = rows.shape[-1]
        groups = torch.nn.functional.pad(rows, (0, -width % shared)).unflatten(-1, (-1, shared))
        low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
        q, step, zero, error = _trial(groups, high - low, low)
        for below, above in _SHRINK[1:]:
            trial = _trial(groups, high * above - low * below, low * below)
            q, step, zero, error = _better((q, step, zero, error), trial)
        q, step, zero, error = _better((q, step, zero, error), _trial(groups, *_fitted(groups, q)))
        levels = q.flatten(2)[:, :, :width]
        levels[:, :, columns:] = 0
        return [
            tile_levels(levels.unflatten(-1, (-1, GROUP))),
            tile_groups(step.half()),
            tile_groups(zero.to(torch.uint8)),
        ]

    return encode


_Trial = tuple[Tensor, Tensor, Tensor, Tensor]
"""Levels [..., columns], and for each group the step, the zero, and the sum of squared errors."""


def _trial(groups: Tensor, span: Tensor, low: Tensor) -> _Trial:
    """Round groups [..., columns] to the 16 levels that begin at `low` and reach over `span`."""
    step = to_half(span / 15)
    per_step = inverse(step)
    zero = (low * per_step * -8).round_().clamp_(0, 120)
    q = (groups * per_step[..., None]).add_((zero / 8)[..., None]).round_().clamp_(0, 15)
    error = (q * 8).sub_(zero[..., None]).mul_((step / 8)[..., None]).sub_(groups).square_().sum(-1)
    return q, step, zero, error


def _better(one: _Trial, other: _Trial) -> _Trial:
    """Group by group the trial with the smaller error, the first when equal."""
    wins = other[3] < one[3]
    q, step, zero, error = (
        torch.where(wins[..., None] if new.dim() > wins.dim() else wins, new, old)
        for old, new in zip(one, other, strict=True)
    )
    return q, step, zero, error


def _fitted(groups: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The span and the low end of the grid that is nearest to each group when its levels are `q`: a linear fit."""
    count = groups.shape[-1]
    total, product, sum_q = groups.sum(-1), (groups * q).sum(-1), q.sum(-1)
    spread = count * q.square().sum(-1) - sum_q.square()
    step = torch.where(spread > 0, (count * product - sum_q * total) / spread, 0.0).clamp_(min=0)
    return step * 15, (total - step * sum_q) / count


def _decoder(shared: int) -> Callable[[Sequence[Tensor]], Tensor]:
    def decode(parts: Sequence[Tensor]) -> Tensor:
        quants, scales, zeros = parts
        groups = quants.shape[1]

        def of_groups(x: Tensor) -> Tensor:
            """[NT, shared groups, 16] -> [NT, 16, G, 1]."""
            return x.transpose(1, 2).repeat_interleave(shared // GROUP, dim=-1)[..., :groups, None]

        q = untile_levels(quants).float().mul_(8).sub_(of_groups(zeros))
        return q.mul_(of_groups(scales.float() / 8)).flatten(2)

    return decode
