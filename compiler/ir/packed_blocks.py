"""The blocks in which GGUF files store weights, as parts of packed formats: repacked, not dequantized and rounded anew.

A stored block holds 32 columns of a row with an fp16 scale, and its minimum where it has one, in front of the integers.
Those of the K types hold 256: `Q4_K` eight groups, `Q3_K` and `Q6_K` sixteen, whose scales follow the integers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llmc.errors import InvalidGraph
from llmc.ir.ops import declare
from llmc.ir.packed_formats import FORMATS
from llmc.ir.packed_int6 import tile_six_bits
from llmc.ir.packed_layout import GROUP, TILE, tile_count, tile_groups, tile_levels

STORED_FORMATS = {
    "Q3_K": "int6g16",
    "Q4_0": "int4m",
    "Q4_1": "int4m",
    "Q4_K": "int4m",
    "Q6_K": "int6g16",
    "Q8_0": "int8",
}
"""The packed format that holds what a type of ggml stores. The scales of the K types, which are products, are rounded
to fp16."""

_TILES_AT_ONCE = 64


def _blocks_fake(blocks: Tensor, stored: str, k: int) -> list[Tensor]:
    format = FORMATS[stored_format(stored)]
    tiles = tile_count(blocks.shape[-2]) * (blocks.shape[0] if blocks.dim() == 3 else 1)
    return [blocks.new_empty(part.shape(tiles, k), dtype=part.dtype) for part in format.parts.values()]


@declare("(Tensor blocks, str stored, int k) -> Tensor[]", _blocks_fake)
def pack_blocks(blocks: Tensor, stored: str, k: int) -> list[Tensor]:
    """The parts of a weight [N, k], or of experts [E, N, k], from what a file stores of it.

    blocks: u8 [N, bytes of a row] or [E, N, bytes of a row], of ggml's type `stored`. The format of the parts is
    `STORED_FORMATS[stored]`.
    """
    experts = blocks if blocks.dim() == 3 else blocks.unsqueeze(0)
    read, tiles = _READERS[stored_format(stored) and stored], tile_count(experts.shape[1])
    made = _blocks_fake(blocks, stored, k)
    for expert, rows in enumerate(experts):
        for start in range(0, tiles, _TILES_AT_ONCE):
            given = rows[start * TILE : (start + _TILES_AT_ONCE) * TILE]
            padded = torch.nn.functional.pad(given, (0, 0, 0, -given.shape[0] % TILE))
            pieces = read(padded.unflatten(0, (-1, TILE)), k // GROUP)
            for part, piece in zip(made, pieces, strict=True):
                at = expert * tiles + start
                part[at : at + piece.shape[0]] = piece
    return made


def stored_format(stored: str) -> str:
    """The format of what ggml's type `stored` becomes. Raises `InvalidGraph` for a type that has none."""
    if stored not in STORED_FORMATS:
        raise InvalidGraph(f"stored type {stored!r:.40}: expected one of {', '.join(STORED_FORMATS)}")
    return STORED_FORMATS[stored]


def _halves(bytes_: Tensor) -> Tensor:
    """Bytes [..., 2n] as fp16 [..., n]."""
    return bytes_.contiguous().view(torch.float16)


def _q4_0(rows: Tensor, groups: int) -> list[Tensor]:
    blocks = rows.unflatten(-1, (groups, 18))
    scale = _halves(blocks[..., :2]).squeeze(-1)
    return [_two_halves(blocks[..., 2:]), tile_groups(scale), tile_groups(-8 * scale)]


def _q4_1(rows: Tensor, groups: int) -> list[Tensor]:
    blocks = rows.unflatten(-1, (groups, 20))
    scale, low = _halves(blocks[..., :4]).unbind(-1)
    return [_two_halves(blocks[..., 4:]), tile_groups(scale), tile_groups(low)]


def _two_halves(quants: Tensor) -> Tensor:
    """Bytes [NT, 16, G, 16], whose low halves are the first 16 columns, in tile order: the halves stay as they are."""
    tiled: Tensor = quants.unflatten(-1, (4, 4)).permute(0, 2, 3, 1, 4)
    return tiled


def _q4_k(rows: Tensor, groups: int) -> list[Tensor]:
    blocks = rows.unflatten(-1, (groups // 8, 144))
    scale, low = _halves(blocks[..., :4]).float().unbind(-1)
    first, second, third = blocks[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)
    # Six bits each: groups 0 to 3 whole, of groups 4 to 7 the low four bits in `third`, the high two in the others.
    factors = torch.cat((first & 63, (third & 15) | first >> 6 << 4), -1)
    mins = torch.cat((second & 63, third >> 4 | second >> 6 << 4), -1)
    # 32 bytes hold two groups: one in the low halves, the next in the high ones.
    quants = blocks[..., 16:].unflatten(-1, (4, 32))
    levels = torch.stack((quants & 15, quants >> 4), dim=-2).flatten(-3, -2)
    return [
        tile_levels(levels.flatten(2, 3)),
        tile_groups((scale[..., None] * factors).half().flatten(2)),
        tile_groups((low[..., None] * mins).neg().half().flatten(2)),
    ]


def _q3_k(rows: Tensor, groups: int) -> list[Tensor]:
    blocks = rows.unflatten(-1, (groups // 8, 110))
    # The high bit: bit j of 32 bytes for columns 32j and up. The low two: 128 columns in 32 bytes, then the others.
    high = torch.stack([blocks[..., :32] >> j & 1 for j in range(8)], -2)
    low = torch.stack([blocks[..., 32:96].unflatten(-1, (2, 32)) >> 2 * j & 3 for j in range(4)], -2).flatten(-3, -2)
    # Six bits each: four of all in eight bytes, low halves first, and the high two in four bytes.
    four, two = blocks[..., 96:104], blocks[..., 104:108]
    factors = torch.cat((four & 15, four >> 4), -1) | torch.cat([two >> 2 * j & 3 for j in range(4)], -1) << 4
    scale = _halves(blocks[..., 108:]).float() * (factors.float() - 32)
    return [tile_six_bits((low + 4 * high + 28).flatten(2, 3)), tile_groups(scale.half().flatten(2))]


def _q6_k(rows: Tensor, groups: int) -> list[Tensor]:
    blocks = rows.unflatten(-1, (groups // 8, 210))
    # Of 128 columns, 64 bytes hold the low four bits: of columns 0 to 63 in their low halves, of the others above.
    # 32 bytes hold the high two bits: those of columns 0 to 31 lowest.
    low, high = blocks[..., :128].unflatten(-1, (2, 64)), blocks[..., 128:192].unflatten(-1, (2, 32))
    four = torch.cat((low & 15, low >> 4), -1)
    two = torch.cat([high >> 2 * j & 3 for j in range(4)], -1)
    levels = (four | two << 4).flatten(2).unflatten(-1, (groups, GROUP))
    scale = _halves(blocks[..., 208:]).float() * blocks[..., 192:208].contiguous().view(torch.int8)
    return [tile_six_bits(levels), tile_groups(scale.half().flatten(2))]


def _q8_0(rows: Tensor, groups: int) -> list[Tensor]:
    blocks = rows.unflatten(-1, (groups, 34))
    scale = _halves(blocks[..., :2]).squeeze(-1)
    quants = (blocks[..., 2:] ^ 128).flatten(2).unflatten(-1, (-1, 4))  # two's complement plus 128
    # The padding of a tile is zero bytes, which is the integer 0 here too.
    return [quants.permute(0, 2, 1, 3), tile_groups(scale)]


_READERS: dict[str, Callable[[Tensor, int], list[Tensor]]] = {
    "Q3_K": _q3_k,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
    "Q8_0": _q8_0,
}
