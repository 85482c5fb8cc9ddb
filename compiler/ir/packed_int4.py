"""Four bits a weight: levels of a grid with a scale and a zero in eighths of a step, and the search for the grid."""

from collections.abc import Callable, Sequence

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

LEVELS = Part((1, 4, TILE, 4), torch.uint8)
"""The part that holds the levels."""

_SHRINK = ((1.0, 1.0), (1.0, 0.94), (0.94, 1.0), (0.94, 0.94))
"""What the ends of the range of a group are tried at: cutting off a few values can round all the others better."""

_FITS = 2
"""How often the best grid so far is fitted to the values that it rounds alike."""


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
        x = columns_first(rows, shared)
        step, zero = _search(x)
        levels = rows_first(_rounded(x, step, zero, torch.empty_like(x)).to(torch.uint8), rows)
        levels[:, :, columns:] = 0
        sizes = rows.shape[0], TILE, -1
        return [
            tile_levels(levels.unflatten(-1, (-1, GROUP))),
            tile_groups(step.half().view(sizes)),
            tile_groups(zero.to(torch.uint8).view(sizes)),
        ]

    return encode


def _search(x: Tensor) -> tuple[Tensor, Tensor]:
    """The step and the zero [n] of the grid with the least squared error that was found for each column of x [C, n]."""
    low, high, total = x.amin(0).clamp_(max=0), x.amax(0).clamp_(min=0), x.sum(0)
    q, scratch = torch.empty_like(x), torch.empty_like(x)
    best = _trial(x, high - low, low, q, scratch)
    for below, above in _SHRINK[1:]:
        best = _better(best, _trial(x, high * above - low * below, low * below, q, scratch))
    for _ in range(_FITS):
        _rounded(x, best[0], best[1], q)
        best = _better(best, _trial(x, *_fitted(x, q, total, scratch), q, scratch))
    return best[0], best[1]


_Trial = tuple[Tensor, Tensor, Tensor]
"""The step, the zero, and the sum of squared errors of each group, [n]."""


def _trial(x: Tensor, span: Tensor, low: Tensor, q: Tensor, scratch: Tensor) -> _Trial:
    """Try the 16 levels that begin at `low` and reach over `span`. q and scratch are overwritten."""
    step = to_half(span / 15)
    zero = (low * inverse(step) * -8).round_().clamp_(0, 120)
    _rounded(x, step, zero, q)
    return step, zero, torch.mul(q, step, out=scratch).sub_(x).sub_(zero * step / 8).square_().sum(0)


def _rounded(x: Tensor, step: Tensor, zero: Tensor, q: Tensor) -> Tensor:
    """The levels of x, written to q."""
    return torch.mul(x, inverse(step), out=q).add_(zero / 8).round_().clamp_(0, 15)


def _better(one: _Trial, other: _Trial) -> _Trial:
    """Group by group the trial with the smaller error, the first when equal."""
    wins = other[2] < one[2]
    step, zero, error = (torch.where(wins, new, old) for old, new in zip(one, other, strict=True))
    return step, zero, error


def _fitted(x: Tensor, q: Tensor, total: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """The span and the low end of the grid that is nearest to x when its levels are q: a linear fit."""
    count = x.shape[0]
    sum_q, product = q.sum(0), torch.mul(x, q, out=scratch).sum(0)
    spread = count * torch.mul(q, q, out=scratch).sum(0) - sum_q.square()
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
