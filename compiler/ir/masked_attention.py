"""Attention whose mask is a formula: over a whole sequence, and over a paged cache.

`masked_attention` is what lifting a mask makes of `attention`; `cached_attention` is the same computation in
packed-token form, with the keys and values of earlier steps read from the cache. Letters as in `llmc.ir.ops`; NB blocks
in the cache, BS tokens in a block, M blocks in the longest block table.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmc.ir.cache_formats import read_rows, write_rows
from llmc.ir.mask import TRUE, evaluate
from llmc.ir.ops import accumulate_dtype, attention_weights, declare


def _whole_fake(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@declare(
    "(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor[] tables, str mask, str bias, float scale, float softcap)"
    " -> Tensor",
    _whole_fake,
)
def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    tables: Sequence[Tensor],
    mask: str,
    bias: str,
    scale: float,
    softcap: float,
) -> Tensor:
    """`attention` over whole sequences with the mask and the additive bias as formulas (see `llmc.ir.mask`).

    q: [B, H, S, D]; k: [B, Hk, S, D]; v: [B, Hk, S, Dv] -> [B, H, S, Dv]; query i and key i have position i.
    sinks: [H] or None; tables: what `t0[...]`, `t1[...]` in the formulas mean. bias is "0" for none.
    """
    queries = torch.arange(q.shape[-2], device=q.device)
    keys = torch.arange(k.shape[-2], device=q.device)
    out = [
        _attend(
            q[row],
            k[row],
            v[row],
            sinks,
            tables,
            mask,
            bias,
            scale,
            softcap,
            query_positions=queries,
            key_positions=keys,
        )
        for row in range(q.shape[0])
    ]
    return torch.stack(out)


def _cached_fake(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@declare(
    "(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor positions, Tensor slots,"
    " Tensor starts, Tensor lengths, Tensor blocks, Tensor? sinks, Tensor[] tables, str mask, str bias, float scale,"
    " float softcap) -> Tensor",
    _cached_fake,
)
def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    slots: Tensor,
    starts: Tensor,
    lengths: Tensor,
    blocks: Tensor,
    sinks: Tensor | None,
    tables: Sequence[Tensor],
    mask: str,
    bias: str,
    scale: float,
    softcap: float,
) -> Tensor:
    """Write the K and V of this step's tokens into the paged cache, then attend to all that the cache holds of each
    token's own sequence.

    q: [T, H, D]; k: [T, Hk, D]; v: [T, Hk, Dv] -> [T, H, Dv]. k_cache: [NB, BS, Hk, D]; v_cache: [NB, BS, Hk, Dv], both
    written at `slots` [T] (block · BS + offset), in any format of `llmc.ir.cache_formats` (D + 2 wide in eight bits).
    positions: [T]. Sequence b owns the tokens starts[b] to starts[b + 1], has lengths[b] tokens in the cache after the
    write, position p of it in block blocks[b, p // BS].
    sinks, tables, mask, bias, scale, softcap as in `masked_attention`.
    """
    size = k_cache.shape[1]
    write_rows(k_cache, slots, k)
    write_rows(v_cache, slots, v)
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    bounds = starts.tolist()
    for row, length in enumerate(lengths.tolist()):
        tokens = slice(bounds[row], bounds[row + 1])
        table = blocks[row, : -(-length // size)]
        keys, values = read_rows(k_cache, table, length), read_rows(v_cache, table, length)
        attended = _attend(
            q[tokens].transpose(0, 1),
            keys.transpose(0, 1),
            values.transpose(0, 1),
            sinks,
            tables,
            mask,
            bias,
            scale,
            softcap,
            query_positions=positions[tokens],
            key_positions=torch.arange(length, device=q.device),
        )
        out[tokens] = attended.transpose(0, 1)
    return out


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    tables: Sequence[Tensor],
    mask: str,
    bias: str,
    scale: float,
    softcap: float,
    *,
    query_positions: Tensor,
    key_positions: Tensor,
) -> Tensor:
    # One sequence: q [H, S, D], k [Hk, K, D], v [Hk, K, Dv] -> [H, S, Dv].
    wide = accumulate_dtype(q.dtype)
    heads, groups = q.shape[0], q.shape[0] // k.shape[0]
    grouped = q.to(wide).unflatten(0, (k.shape[0], groups))
    scores = torch.einsum("kgsd,ktd->kgst", grouped, k.to(wide)).flatten(0, 1) * scale
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
    places = (
        query_positions[None, :, None],
        key_positions[None, None, :],
        torch.arange(heads, device=q.device)[:, None, None],
    )
    if bias != "0":
        scores = scores + evaluate(bias, *places, tables, wide)
    if mask != TRUE:
        scores = scores.masked_fill(~evaluate(mask, *places, tables, wide), -torch.inf)
    weights = attention_weights(scores, sinks).unflatten(0, (k.shape[0], groups))
    return torch.einsum("kgst,ktd->kgsd", weights, v.to(wide)).flatten(0, 1).to(q.dtype)
