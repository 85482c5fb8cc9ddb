"""What a packed format is made of: parts, and how the rows of a weight become tiles.

A weight [N, K] is padded to whole tiles of 16 rows and whole groups of 32 columns. Letters: NT tiles, K padded columns,
G = K / 32 groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TILE, GROUP = 16, 32
"""Rows of a tile, columns of a group."""

_HALF_MAX = 65504.0


Arithmetic = Literal["f32", "bf16", "int8"]
"""What products are computed in."""


@dataclass(frozen=True)
class Part:
    """One tensor of a packed weight."""

    entry: tuple[int, ...]
    """Sizes of what one tile stores for every `columns` columns; those of a row follow each other along the first."""
    dtype: torch.dtype
    columns: int = GROUP
    """Columns that share an entry, the last of a row perhaps fewer; 0 for all of the row."""

    def shape(self, tiles: int, columns: int) -> tuple[int, ...]:
        """The sizes of the part in so many tiles of so many columns."""
        if self.columns == 0:
            return tiles, *self.entry
        per_entry, *rest = self.entry
        return tiles, -(-columns // self.columns) * per_entry, *rest


@dataclass(frozen=True)
class PackedFormat:
    """One format: what its parts are called and how large they are, and the way there and back."""

    parts: dict[str, Part]
    """The parts, in order."""
    encode: Callable[[Tensor, int], list[Tensor]]
    """The parts of rows [NT, 16, K] in float32, of which so many columns are real."""
    decode: Callable[[Sequence[Tensor]], Tensor]
    """The rows [NT, 16, K] in float32."""
    arithmetic: Arithmetic
    """What it is multiplied in: activations are floats, are rounded to bfloat16, or to 8 bits a group of 32 columns."""
    quantized: bool
    """Whether values are rounded to a grid."""


def tile_count(rows: int) -> int:
    """The tiles of so many rows."""
    return -(-rows // TILE)


def padded_columns(columns: int) -> int:
    """`columns`, filled up to whole groups."""
    return -(-columns // GROUP) * GROUP


def tile_bytes(x: Tensor) -> Tensor:
    """One byte for each row and column, [NT, 16, K] -> [NT, K / 4, 16, 4]."""
    tiled: Tensor = x.unflatten(-1, (-1, 4)).permute(0, 2, 1, 3)
    return tiled


def untile_bytes(tiled: Tensor) -> Tensor:
    """The inverse of `tile_bytes`."""
    rows: Tensor = tiled.permute(0, 2, 1, 3).flatten(2)
    return rows


def tile_levels(q: Tensor) -> Tensor:
    """Levels [NT, 16, G, 32] from 0 to 15, two in a byte: [NT, G, 4, 16, 4]."""
    low, high = q.to(torch.uint8).unflatten(-1, (2, 4, 4)).unbind(3)
    both: Tensor = low | high << 4
    return both.permute(0, 2, 3, 1, 4)


def untile_levels(quants: Tensor) -> Tensor:
    """The inverse of `tile_levels`."""
    halves = torch.stack((quants & 15, quants >> 4), dim=2)  # [NT, G, 2, 4, 16, 4]
    return halves.permute(0, 4, 1, 2, 3, 5).flatten(3)


def tile_groups(x: Tensor) -> Tensor:
    """One value for each row and group, [NT, 16, G] -> [NT, G, 16]."""
    return x.transpose(1, 2)


def columns_first(rows: Tensor, shared: int) -> Tensor:
    """Groups of `shared` columns side by side, [NT, 16, K] -> [shared, NT · 16 · groups].

    What is done to each group alike is then done to whole vectors of groups. The last group of a row is filled up with
    zeros.
    """
    filled = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % shared))
    return filled.reshape(-1, shared).t().contiguous()


def rows_first(groups: Tensor, like: Tensor) -> Tensor:
    """The inverse of `columns_first`, for rows of the shape of `like`."""
    return groups.t().reshape(*like.shape[:2], -1)[..., : like.shape[-1]]


def to_half(x: Tensor) -> Tensor:
    """x as the nearest number that a half holds, in float32."""
    return x.clamp(-_HALF_MAX, _HALF_MAX).half().float()


def inverse(step: Tensor) -> Tensor:
    """1 / step, or 0 where the step is 0."""
    return torch.where(step != 0, step.reciprocal(), 0.0)
