"""Attention over the paged cache: the softmax of tiles of scores that is known key by key, and its pieces.

Scores are in units of log 2, so that weights are powers of two. The state of a row is `top`, the greatest score so far,
`sums`, its weights summed, and `acc`, the weighted values. A kernel may keep the sums of each column of its blocks, and
add them up after the last one.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The greatest of no scores: finite, so that no difference is NaN."""


@triton.jit
def find_tile(starts, B, tile, TOKENS: tl.constexpr):
    """The sequence that a tile of up to TOKENS tokens belongs to, the tile's first token, and the sequence's last + 1.

    The tiles of sequence b begin at number starts[b] // TOKENS + b: every sequence has as many as it needs, and some
    numbers in between are no tile's; their first token is not before the end.
    """
    sequence = -1
    for first in range(0, B, 128):
        index = first + tl.arange(0, 128)
        start = tl.load(starts + index, mask=index < B, other=0)
        sequence += tl.sum(((index < B) & (start // TOKENS + index <= tile)).to(tl.int32), 0)
    start = tl.load(starts + sequence)
    token = start + (tile - start // TOKENS - sequence) * TOKENS
    return sequence, token, tl.load(starts + sequence + 1)


@triton.jit
def share_of(begin, end, split, splits, KEYS: tl.constexpr, LEAST: tl.constexpr):
    """The keys that a split takes of [begin, end), in whole blocks of KEYS, and how many splits have any.

    A split takes LEAST keys or more, so that a short sequence is left to few.
    """
    blocks = tl.cdiv(tl.maximum(end - begin, 1), KEYS)
    each = tl.maximum(tl.cdiv(blocks, splits), LEAST // KEYS)
    first = begin + split * each * KEYS
    return first, tl.minimum(first + each * KEYS, end), tl.cdiv(blocks, each)


@triton.jit
def block_at(table, position, stop, BLOCK: tl.constexpr):
    """The block of the cache that holds a position, by a sequence's block table; of one beyond `stop`, the last block.

    Loops look it up one round ahead, so that what they read does not wait for it.
    """
    return tl.load(table + tl.maximum(tl.minimum(position, stop - 1), 0) // BLOCK)


@triton.jit
def soft_cap(scores, CAP: tl.constexpr):
    """CAP * tanh(scores / 2), in units of log 2, of scores in units of log 2 times CAP / 2."""
    return CAP * 1.4426950408889634 - (2 * CAP * 1.4426950408889634) / (1.0 + tl.exp2(scores))


@triton.jit
def add_block(scores, values, scales, top, sums, acc, PRECISION: tl.constexpr):
    """The state after a block of keys: scores [..., rows, keys], values [..., keys, width].

    scales: None, or what values are multiplied by, [..., 1, keys].
    """
    axis: tl.constexpr = len(scores.shape) - 1
    next_top = tl.maximum(top, tl.max(scores, axis))
    keep = tl.exp2(top - next_top)
    weights = tl.exp2(scores - tl.expand_dims(next_top, axis))
    if len(sums.shape) == len(scores.shape):
        sums = sums * tl.expand_dims(keep, axis) + weights
    else:
        sums = sums * keep + tl.sum(weights, axis)
    if scales is not None:
        weights *= scales
    acc = tl.dot(weights.to(values.dtype), values, acc * tl.expand_dims(keep, axis), input_precision=PRECISION)
    return next_top, sums, acc


@triton.jit
def add_bounded_block(scores, values, scales, top, sums, acc, PRECISION: tl.constexpr):
    """As `add_block` where scores are known to be small: weights are taken as they are, `top` stays 0."""
    axis: tl.constexpr = len(scores.shape) - 1
    weights = tl.exp2(scores)
    sums = sums + weights if len(sums.shape) == len(scores.shape) else sums + tl.sum(weights, axis)
    if scales is not None:
        weights *= scales
    return top, sums, tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)


@triton.jit
def join_groups(top, total, acc):
    """The state of rows [rows] over four groups of keys, from one for each group [4, rows]."""
    next_top = tl.max(top, 0)
    keep = tl.exp2(top - next_top[None, :])
    # Halves are added rather than the axis summed: the groups are in different warps, and this exchanges them once.
    halves = tl.reshape(acc * keep[:, :, None], (2, 2, acc.shape[1], acc.shape[2]))
    first, second = tl.split(tl.permute(halves, (2, 3, 0, 1)))
    first, second = tl.split(first + second)
    return next_top, tl.sum(total * keep, 0), first + second


@triton.jit
def add_sink(top, total, acc, sink):
    """The state after a key without a value, of score `sink` [rows]."""
    next_top = tl.maximum(top, sink)
    keep = tl.exp2(top - next_top)
    return total * keep + tl.exp2(sink - next_top), acc * keep[:, None]


@triton.jit
def unknown_zero(pointer):
    """Zero, but the compiler does not know: what it is added to is computed again, not kept in registers."""
    return (tl.load(pointer, volatile=True) - tl.load(pointer, volatile=True)).to(tl.int32)


@triton.jit
def divided(acc, total):
    """The output of rows; one that sees nothing gives zeros."""
    return acc * tl.where(total == 0, 0.0, 1.0 / total)[:, None]


@triton.jit
def store_share(partials, states, place, top, total, acc, row, column, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Leave the state of a share of the keys at `place` for the program that merges them."""
    inside = (row < ROWS)[:, None] & (column < WIDTH)[None, :]
    tl.store(partials + ((place * ROWS + row) * WIDTH)[:, None] + column[None, :], acc, mask=inside)
    tl.store(states + (place * ROWS + row) * 2, top, mask=row < ROWS)
    tl.store(states + (place * ROWS + row) * 2 + 1, total, mask=row < ROWS)


@triton.jit
def is_last(counters, task, shares):
    """Whether this program is the last of a task's `shares` programs to come here; the counter is then zero again.

    What they stored before is then visible to it.
    """
    tl.debug_barrier()
    arrived = tl.atomic_add(counters + task, 1, sem="acq_rel", scope="gpu")
    if arrived == shares - 1:
        tl.store(counters + task, 0)
    return arrived == shares - 1


@triton.jit
def merge_shares(
    partials, states, place, shares, row, column, ROWS: tl.constexpr, WIDTH: tl.constexpr, AT_ONCE: tl.constexpr
):
    """The state of rows over all shares from `place` on, taken in order: top, total, acc."""
    top = tl.full((row.shape[0],), LOWEST, tl.float32)
    total = tl.zeros((row.shape[0],), tl.float32)
    acc = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for first in range(0, shares, AT_ONCE):
        share = first + tl.arange(0, AT_ONCE)
        at = (place + share)[:, None] * ROWS + row[None, :]
        inside = (share < shares)[:, None] & (row < ROWS)[None, :]
        tops = tl.load(states + at * 2, mask=inside, other=LOWEST)
        totals = tl.load(states + at * 2 + 1, mask=inside, other=0.0)
        accs = tl.load(
            partials + (at * WIDTH)[:, :, None] + column[None, None, :],
            mask=inside[:, :, None] & (column < WIDTH)[None, None, :],
            other=0.0,
        )
        next_top = tl.maximum(top, tl.max(tops, 0))
        keep, weights = tl.exp2(top - next_top), tl.exp2(tops - next_top[None, :])
        total = total * keep + tl.sum(totals * weights, 0)
        acc = acc * keep[:, None] + tl.sum(accs * weights[:, :, None], 0)
        top = next_top
    return top, total, acc
