"""Weights packed as groups of small integers: eight bits, or four with a minimum. Six bits and fewer have a search."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmc.ir.packed_layout import (
    GROUP,
    inverse,
    tile_bytes,
    tile_groups,
    tile_levels,
    to_half,
    untile_bytes,
    untile_levels,
)


def encode_int8(rows: Tensor, columns: int) -> list[Tensor]:
    """Integers from -127 to 127, plus 128, the largest magnitude of each group at 127."""
    groups = rows.unflatten(-1, (-1, GROUP))
    scale = to_half(groups.abs().amax(-1) / 127)
    q = (groups * inverse(scale)[..., None]).round_().clamp_(-127, 127).add_(128).to(torch.uint8)
    return [tile_bytes(q.flatten(2)), tile_groups(scale.half())]


def decode_int8(parts: Sequence[Tensor]) -> Tensor:
    """The inverse of `encode_int8`."""
    quants, scales = parts
    q: Tensor = untile_bytes(quants).unflatten(-1, (-1, GROUP)).float().sub_(128)
    return q.mul_(scales.transpose(1, 2).float()[..., None]).flatten(2)


def encode_int4m(rows: Tensor, columns: int) -> list[Tensor]:
    """Sixteen levels between the ends of each group."""
    groups = rows.unflatten(-1, (-1, GROUP))
    low = to_half(groups.amin(-1))
    step = to_half((groups.amax(-1) - low) / 15)
    q = (groups - low[..., None]).mul_(inverse(step)[..., None]).round_().clamp_(0, 15)
    q.flatten(2)[:, :, columns:] = 0
    return [tile_levels(q), tile_groups(step.half()), tile_groups(low.half())]


def decode_int4m(parts: Sequence[Tensor]) -> Tensor:
    """The inverse of `encode_int4m`."""
    quants, scales, mins = parts
    q = untile_levels(quants).float().mul_(scales.transpose(1, 2).float()[..., None])
    return q.add_(mins.transpose(1, 2).float()[..., None]).flatten(2)
