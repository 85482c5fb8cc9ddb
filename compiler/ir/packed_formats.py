"""How weights lie in memory for native kernels: 16 rows side by side, as floats or as groups of small integers.

A weight [N, K] is padded to whole tiles of 16 rows and whole groups of 32 columns. Letters: NT tiles, K padded columns,
G = K / 32 groups. A format stores one to three tensors, its *parts*:

    f32, f16   data [NT, K, 16]: element (tile, k, r) is row 16 · tile + r, column k
    bf16       data [NT, K / 2, 16, 2]: the columns in pairs, as bf16 dot products read them
    int8       quants u8 [NT, K / 4, 16, 4], scales f16 [NT, G, 16]; w = scale · (q - 128)
    int4       quants u8 [NT, G, 4, 16, 4], scales f16, zeros u8 [NT, G, 16]; w = scale / 8 · (8 q - zero)
    int4m      quants as int4, scales f16, mins f16 [NT, G, 16]; w = scale · q + min

A byte (j, r, i) of int4 holds column 4j + i of its group in the low half, 16 + 4j + i in the high half. A zero in
eighths of a step keeps the grids of files that store a minimum, which whole steps would shift by half a step. Padding
computes nothing: scale 0, and q 0 (int8: 128).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmc.errors import InvalidGraph

TILE, GROUP = 16, 32
"""Rows of a tile, columns of a group."""

_CHUNK_ELEMENTS = 1 << 19
"""Elements packed at once: 2 MiB of float32, so that the temporaries stay in the cache."""

_HALF_MAX = 65504.0


@dataclass(frozen=True)
class PackedFormat:
    """One format: what its parts are called and how large they are, and the way there and back."""

    parts: dict[str, tuple[tuple[int, ...], torch.dtype]]
    """For each part, in order: sizes of one tile and group, the group's columns first, and the dtype."""
    encode: Callable[[Tensor, int], list[Tensor]]
    """The parts of rows [NT, 16, K] in float32, of which so many columns are real."""
    decode: Callable[[Sequence[Tensor]], Tensor]
    """The rows [NT, 16, K] in float32."""
    quantized: bool
    """Whether values are rounded to a grid."""

    def part_shape(self, name: str, tiles: int, columns: int) -> tuple[int, ...]:
        """The sizes of part `name` of so many tiles of so many columns."""
        (per_group, *rest), _ = self.parts[name]
        return tiles, padded_columns(columns) // GROUP * per_group, *rest


def format_named(name: str) -> PackedFormat:
    """The format called `name`. Raises `InvalidGraph` when there is none."""
    if name not in FORMATS:
        raise InvalidGraph(f"weight format {name!r:.40}: expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def tile_count(rows: int) -> int:
    """The tiles of so many rows."""
    return -(-rows // TILE)


def padded_columns(columns: int) -> int:
    """`columns`, filled up to whole groups."""
    return -(-columns // GROUP) * GROUP


def pack(weight: Tensor, format: str) -> list[Tensor]:
    """The parts of a weight [N, K], or of experts [E, N, K], each of which begins with a tile of its own.

    Temporary memory is a few MiB: rows are converted some tiles at a time.
    """
    chosen = format_named(format)
    experts = weight if weight.dim() == 3 else weight.unsqueeze(0)
    count, rows, columns = experts.shape
    tiles, width = tile_count(rows), padded_columns(columns)
    made = [
        torch.empty(chosen.part_shape(name, count * tiles, columns), dtype=dtype)
        for name, (_, dtype) in chosen.parts.items()
    ]
    step = max(1, _CHUNK_ELEMENTS // (TILE * max(width, 1)))
    for expert in range(count):
        for start in range(0, tiles, step):
            stop = min(start + step, tiles)
            values = torch.zeros((stop - start) * TILE, width)
            given = experts[expert, start * TILE : stop * TILE]
            values[: given.shape[0], :columns] = given
            encoded = chosen.encode(values.unflatten(0, (-1, TILE)), columns)
            for part, piece in zip(made, encoded, strict=True):
                part[expert * tiles + start : expert * tiles + stop] = piece
    return made


def unpack(parts: Sequence[Tensor], format: str, n: int, k: int) -> Tensor:
    """The weight [n, k] in float32 that `parts` stand for: exactly, but for the rounding of int4m's sum.

    Raises `InvalidGraph` when the parts are not those of such a weight.
    """
    chosen = format_named(format)
    tiles = tile_count(n)
    expected = [chosen.part_shape(name, tiles, k) for name in chosen.parts]
    if [tuple(part.shape) for part in parts] != expected:
        raise InvalidGraph(f"parts of {format} [{n}, {k}]: found {[list(part.shape) for part in parts]}")
    rows: Tensor = chosen.decode(parts).flatten(0, 1)
    return rows[:n, :k]


def empty_parts(parts_of: Tensor, format: str) -> list[Tensor]:
    """Uninitialised parts of a weight [N, K] or [E, N, K], on the device of `parts_of`, which is that weight."""
    chosen = format_named(format)
    count = parts_of.shape[0] if parts_of.dim() == 3 else 1
    tiles = count * tile_count(parts_of.shape[-2])
    return [
        parts_of.new_empty(chosen.part_shape(name, tiles, parts_of.shape[-1]), dtype=dtype)
        for name, (_, dtype) in chosen.parts.items()
    ]


def tile_levels(q: Tensor) -> Tensor:
    """Levels [NT, 16, G, 32] from 0 to 15 as the bytes of int4, [NT, G, 4, 16, 4]."""
    low, high = q.to(torch.uint8).unflatten(-1, (2, 4, 4)).unbind(3)
    both: Tensor = low | high << 4
    return both.permute(0, 2, 3, 1, 4)


def tile_groups(x: Tensor) -> Tensor:
    """One value for each row and group, [NT, 16, G] -> [NT, G, 16]."""
    return x.transpose(1, 2)


def _levels(quants: Tensor) -> Tensor:
    """The inverse of `tile_levels`, in float32."""
    halves = torch.stack((quants & 15, quants >> 4), dim=2)  # [NT, G, 2, 4, 16, 4]
    return halves.permute(0, 4, 1, 2, 3, 5).flatten(3).float()


def _float_format(dtype: torch.dtype, pair: int) -> PackedFormat:
    def encode(rows: Tensor, columns: int) -> list[Tensor]:
        pairs = rows.to(dtype).unflatten(-1, (-1, pair)).permute(0, 2, 1, 3)
        return [pairs if pair > 1 else pairs.squeeze(-1)]

    def decode(parts: Sequence[Tensor]) -> Tensor:
        (data,) = parts
        pairs = data if pair > 1 else data.unsqueeze(-1)
        return pairs.permute(0, 2, 1, 3).flatten(2).float()

    sizes = (GROUP // pair, TILE, pair) if pair > 1 else (GROUP, TILE)
    return PackedFormat({"data": (sizes, dtype)}, encode, decode, quantized=False)


def _inverse(step: Tensor) -> Tensor:
    return torch.where(step > 0, step.reciprocal(), 0.0)


def _half(x: Tensor) -> Tensor:
    """x as the nearest number that a half holds, in float32."""
    return x.clamp(-_HALF_MAX, _HALF_MAX).half().float()


def _encode_int8(rows: Tensor, columns: int) -> list[Tensor]:
    groups = rows.unflatten(-1, (-1, GROUP))
    scale = _half(groups.abs().amax(-1) / 127)
    q = (groups * _inverse(scale)[..., None]).round_().clamp_(-127, 127).add_(128).to(torch.uint8)
    return [q.flatten(2).unflatten(-1, (-1, 4)).permute(0, 2, 1, 3), tile_groups(scale.half())]


def _decode_int8(parts: Sequence[Tensor]) -> Tensor:
    quants, scales = parts
    q: Tensor = quants.permute(0, 2, 1, 3).flatten(2).unflatten(-1, (-1, GROUP)).float().sub_(128)
    return q.mul_(scales.transpose(1, 2).float()[..., None]).flatten(2)


_SHRINK = ((1.0, 1.0), (1.0, 0.9), (0.9, 1.0), (0.9, 0.9))
"""What the ends of the range of a group are tried at: cutting off a few values can round all the others better."""


def _encode_int4(rows: Tensor, columns: int) -> list[Tensor]:
    groups = rows.unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    q, step, zero, error = _int4_trial(groups, high - low, low)
    for below, above in _SHRINK[1:]:
        trial = _int4_trial(groups, high * above - low * below, low * below)
        q, step, zero, error = _better((q, step, zero, error), trial)
    q, step, zero, error = _better((q, step, zero, error), _int4_trial(groups, *_fitted(groups, q)))
    q.flatten(2)[:, :, columns:] = 0
    return [tile_levels(q), tile_groups(step.half()), tile_groups(zero.to(torch.uint8))]


_Trial = tuple[Tensor, Tensor, Tensor, Tensor]
"""Levels [..., 32], and for each group the step, the zero, and the sum of squared errors."""


def _int4_trial(groups: Tensor, span: Tensor, low: Tensor) -> _Trial:
    """Round groups [..., 32] to the 16 levels that begin at `low` and reach over `span`."""
    step = _half(span / 15)
    inverse = _inverse(step)
    zero = (low * inverse * -8).round_().clamp_(0, 120)
    q = (groups * inverse[..., None]).add_((zero / 8)[..., None]).round_().clamp_(0, 15)
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
    total, product, sum_q = groups.sum(-1), (groups * q).sum(-1), q.sum(-1)
    spread = GROUP * q.square().sum(-1) - sum_q.square()
    step = torch.where(spread > 0, (GROUP * product - sum_q * total) / spread, 0.0).clamp_(min=0)
    return step * 15, (total - step * sum_q) / GROUP


def _decode_int4(parts: Sequence[Tensor]) -> Tensor:
    quants, scales, zeros = parts
    q = _levels(quants).mul_(8).sub_(zeros.transpose(1, 2)[..., None])
    return q.mul_((scales.transpose(1, 2).float() / 8)[..., None]).flatten(2)


def _encode_int4m(rows: Tensor, columns: int) -> list[Tensor]:
    groups = rows.unflatten(-1, (-1, GROUP))
    low = _half(groups.amin(-1))
    step = _half((groups.amax(-1) - low) / 15)
    q = (groups - low[..., None]).mul_(_inverse(step)[..., None]).round_().clamp_(0, 15)
    q.flatten(2)[:, :, columns:] = 0
    return [tile_levels(q), tile_groups(step.half()), tile_groups(low.half())]


def _decode_int4m(parts: Sequence[Tensor]) -> Tensor:
    quants, scales, mins = parts
    q = _levels(quants).mul_(scales.transpose(1, 2).float()[..., None])
    return q.add_(mins.transpose(1, 2).float()[..., None]).flatten(2)


_LEVELS = ((1, 4, TILE, 4), torch.uint8)
_PER_GROUP = (1, TILE)

FORMATS: dict[str, PackedFormat] = {
    "f32": _float_format(torch.float32, 1),
    "f16": _float_format(torch.float16, 1),
    "bf16": _float_format(torch.bfloat16, 2),
    "int8": PackedFormat(
        {"quants": ((GROUP // 4, TILE, 4), torch.uint8), "scales": (_PER_GROUP, torch.float16)},
        _encode_int8,
        _decode_int8,
        quantized=True,
    ),
    "int4": PackedFormat(
        {"quants": _LEVELS, "scales": (_PER_GROUP, torch.float16), "zeros": (_PER_GROUP, torch.uint8)},
        _encode_int4,
        _decode_int4,
        quantized=True,
    ),
    "int4m": PackedFormat(
        {"quants": _LEVELS, "scales": (_PER_GROUP, torch.float16), "mins": (_PER_GROUP, torch.float16)},
        _encode_int4m,
        _decode_int4m,
        quantized=True,
    ),
}
"""The formats, by name."""

FLOAT_FORMATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
"""The format that keeps the values of each dtype."""
