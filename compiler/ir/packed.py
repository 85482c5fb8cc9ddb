"""Ops on packed weights: what linears, embeddings and experts become when a native program is built.

The weights are parts of a format of `llmc.ir.packed_formats`. Letters as in `llmc.ir.ops`; N rows and K columns of the
weight as it was before it was padded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmc.errors import InvalidGraph
from llmc.ir.ops import accumulate_dtype, activate_expert, declare
from llmc.ir.packed_formats import empty_parts, format_named, pack, unpack
from llmc.ir.packed_layout import GROUP, TILE, tile_count

_TILES_AT_ONCE = 256
"""Tiles of a weight that are unpacked at a time."""


@declare("(Tensor weight, str format) -> Tensor[]", empty_parts)
def pack_weight(weight: Tensor, format: str) -> list[Tensor]:
    """The parts of `weight` in a format of `llmc.ir.packed_formats`.

    weight: [N, K], or [E, N, K] for experts, each of which begins with a tile of its own.
    """
    return pack(weight, format)


def _linear_fake(x: Tensor, parts: Sequence[Tensor], bias: Tensor | None, format: str, n: int, k: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


@declare("(Tensor x, Tensor[] parts, Tensor? bias, str format, int n, int k) -> Tensor", _linear_fake)
def linear_packed(x: Tensor, parts: Sequence[Tensor], bias: Tensor | None, format: str, n: int, k: int) -> Tensor:
    """`aten.linear` by a packed weight [n, k]: x [..., k] -> [..., n], in the dtype of x. bias: [n] or None.

    Float formats multiply what they store; bf16 rounds x to bf16 first, fp8 leaves it as it is. Integer formats round x
    as well, to 127 levels on either side of zero for each token and group of 32 columns. Products and sums of formats
    that are grids are exact to fp64.
    """
    chosen = format_named(format)
    if chosen.quantized:
        flat = x.reshape(-1, x.shape[-1])
        flat = rounded_activations(flat) if chosen.arithmetic == "int8" else flat.double()
        rows = [flat @ weight.double().t() for weight in _pieces(parts, format, n, k)]
        y = torch.cat(rows, dim=-1).reshape(*x.shape[:-1], n)
        return (y if bias is None else y + bias.double()).to(x.dtype)
    rounded = x.to(torch.bfloat16).to(x.dtype) if chosen.arithmetic == "bf16" else x
    weight = unpack(parts, format, n, k).to(x.dtype)
    return torch.nn.functional.linear(rounded, weight, bias)


def rounded_activations(x: Tensor) -> Tensor:
    """x [T, K] as integer kernels see it, in fp64: 255 levels for each token and group of 32 columns."""
    columns = x.shape[-1]
    groups: Tensor = torch.nn.functional.pad(x.float(), (0, -columns % GROUP)).unflatten(-1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    levels = (groups * torch.where(scale > 0, scale.reciprocal(), 0.0)).round().clamp(-127, 127)
    return (levels.double() * scale.double()).flatten(1)[:, :columns]


def _pieces(parts: Sequence[Tensor], format: str, n: int, k: int) -> list[Tensor]:
    """The weight some tiles at a time, float32 [up to 4096, k]; checked as a whole by `unpack`'s rules."""
    if any(part.dim() == 0 or part.shape[0] != tile_count(n) for part in parts) or n < 1:
        raise InvalidGraph(f"parts of {format} [{n}, {k}]: found {[list(part.shape) for part in parts]}")
    return [
        unpack(
            [part[start : start + _TILES_AT_ONCE] for part in parts],
            format,
            min(n - start * TILE, _TILES_AT_ONCE * TILE),
            k,
        )
        for start in range(0, tile_count(n), _TILES_AT_ONCE)
    ]


def _embedding_fake(tokens: Tensor, parts: Sequence[Tensor], format: str, n: int, k: int, dtype: torch.dtype) -> Tensor:
    return tokens.new_empty((*tokens.shape, k), dtype=dtype)


@declare(
    "(Tensor tokens, Tensor[] parts, str format, int n, int k, ScalarType dtype) -> Tensor",
    _embedding_fake,
)
def embedding_packed(
    tokens: Tensor, parts: Sequence[Tensor], format: str, n: int, k: int, dtype: torch.dtype
) -> Tensor:
    """Rows of a packed table [n, k]: tokens [...], integers below n -> [..., k] in `dtype`."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < n:
        raise IndexError(f"token ids from {int(tokens.min())} to {int(tokens.max())}; expected 0 to {n - 1}")
    tiles, place = torch.unique(tokens // TILE, return_inverse=True)
    rows = unpack([part.index_select(0, tiles) for part in parts], format, tiles.numel() * TILE, k)
    return rows.reshape(-1, TILE, k)[place, tokens % TILE].to(dtype)


def _moe_fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@declare(
    "(Tensor x, Tensor expert_ids, Tensor expert_weights, Tensor[] up, Tensor? up_bias, Tensor[] down,"
    " Tensor? down_bias, str up_format, str down_format, int experts, int width, str act, bool gated, float limit,"
    " float up_offset) -> Tensor",
    _moe_fake,
)
def moe_packed(
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    up: Sequence[Tensor],
    up_bias: Tensor | None,
    down: Sequence[Tensor],
    down_bias: Tensor | None,
    up_format: str,
    down_format: str,
    experts: int,
    width: int,
    act: str,
    gated: bool,
    limit: float,
    up_offset: float,
) -> Tensor:
    """`moe` with packed weights: x [T, D], expert_ids and expert_weights [T, K] -> [T, D].

    up: the parts of [E, 2F, D] when `gated`, the rows of the gate first, else of [E, F, D]; down: those of [E, D, F].
    Expert e begins at tile e · ceil(rows / 16). experts: E; width: F. Each product is that of `linear_packed`.
    """
    wide = accumulate_dtype(x.dtype)
    size, rows_up = x.shape[-1], 2 * width if gated else width
    result = torch.zeros(x.shape, dtype=wide, device=x.device)
    for expert in torch.unique(expert_ids).tolist():
        if not 0 <= expert < experts:
            raise IndexError(f"expert {expert}; expected 0 to {experts - 1}")
        rows, slots = torch.where(expert_ids == expert)
        first = _expert(up, expert, tile_count(rows_up)), None if up_bias is None else up_bias[expert]
        hidden = linear_packed(x[rows], *first, up_format, rows_up, size)
        hidden = activate_expert(hidden.to(wide), act, gated, False, limit, up_offset).to(x.dtype)
        second = _expert(down, expert, tile_count(size)), None if down_bias is None else down_bias[expert]
        y = linear_packed(hidden, *second, down_format, size, width).to(wide)
        result.index_add_(0, rows, y * expert_weights[rows, slots, None].to(wide))
    return result.to(x.dtype)


def _expert(parts: Sequence[Tensor], expert: int, tiles: int) -> list[Tensor]:
    return [part[expert * tiles : (expert + 1) * tiles] for part in parts]
