"""Attention over the paged cache: the softmax of tiles of scores that is known key by key, and its pieces.

Scores are in units of log 2, so that weights are powers of two. The state of a row is `top`, the greatest score so far,
`sums`, its weights summed, and `acc`, the weighted values. A kernel may keep the sums of each key of its blocks, and
add them up after the last one. Keys are the second axis of scores in all kernels: [rows, keys] where rows of queries
are the large side of a matrix product, [groups, keys, rows] where keys are.
"""

import triton
import triton.language as tl

from llmc.codegen.triton.library.numbers import tanh

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The greatest of no scores: finite, so that no difference is NaN."""


@triton.jit
def find_tile(starts, B, tile, TOKENS: tl.constexpr):
    """The sequence that a tile of up to TOKENS tokens belongs to, the tile's first token, and the sequence's last + 1.
    A sequence of one token, which `find_share` is for, has no tiles.

    The tiles of sequence b begin at number starts[b] // TOKENS + b: every sequence has as many as it needs, and some
    numbers in between are no tile's; their first token is not before the end.
    """
    sequence = -1
    for first in range(0, B, 128):
        index = first + tl.arange(0, 128)
        start = tl.load(starts + index, mask=index < B, other=0)
        sequence += tl.sum(((index < B) & (start // TOKENS + index <= tile)).to(tl.int32), 0)
    start, last = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    token = start + (tile - start // TOKENS - sequence) * TOKENS
    return sequence, tl.where(last - start == 1, last, token), last


@triton.jit
def blocks_of_share(blocks, each):
    """How many of a sequence's blocks a program takes where programs are to take `each`, or more.

    One block comes in about 0.3 us, and so does what merging 16 more shares takes (assumed): up to 16 programs have one
    block each, more have two or more. A sequence has 64 programs at most, as one of them reads what all have left.
    """
    return tl.maximum(each, tl.maximum(tl.cdiv(blocks, 64), tl.minimum(tl.cdiv(blocks, 16), 2)))


@triton.jit
def find_share(starts, lengths, B, number, programs, keys_of: tl.constexpr, KEYS: tl.constexpr):
    """The work of program `number` of those that divide the keys of a step's sequences of one token among them.

    Together they are to have about so many `programs`, each about as many keys, whatever the sequences' lengths: the
    same bytes for every program, so that none is waited for. Returns the sequence, -1 where there is none; which of its
    shares; how many it has; where the state of its first share is kept, if there are several; the first key and the
    last + 1, as keys_of(length, KEYS) gives those that the last of `length` tokens sees.
    """
    sequence, base, place = -1, 0, 0
    each = 1
    if B == 1:
        sequence = 0
        begin, end = keys_of(tl.load(lengths).to(tl.int32), KEYS)
        each = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 1), KEYS), programs)
    else:
        total = 0
        for first in range(0, B, 128):
            total += tl.sum(_blocks_of(starts, lengths, B, first, keys_of, KEYS), 0)
        each = tl.maximum(tl.cdiv(total, programs), 1)
        before = tl.cast(0, tl.int64)
        found = tl.cast(0, tl.int64)
        for first in range(0, B, 128):
            blocks = _blocks_of(starts, lengths, B, first, keys_of, KEYS)
            shares = tl.cdiv(blocks, blocks_of_share(blocks, each)).to(tl.int64)
            # Programs, and those of them that leave a state, counted in two parts of one number.
            counted = shares + tl.where(shares > 1, shares << 20, 0)
            until = before + tl.cumsum(counted, 0)
            mine = (number < (until & 0xFFFFF)) & (number >= ((until - counted) & 0xFFFFF))
            index = first + tl.arange(0, 128) + 1
            found += tl.sum(tl.where(mine, (until - counted) | (index.to(tl.int64) << 40), 0), 0)
            before += tl.sum(counted, 0)
        sequence = (found >> 40).to(tl.int32) - 1
        base, place = (found & 0xFFFFF).to(tl.int32), ((found >> 20) & 0xFFFFF).to(tl.int32)
    begin, end = keys_of(tl.load(lengths + tl.maximum(sequence, 0)).to(tl.int32), KEYS)
    blocks = tl.cdiv(tl.maximum(end - begin, 1), KEYS)
    each = blocks_of_share(blocks, each)
    share = number - base
    shares = tl.cdiv(blocks, each)
    first_key = begin + share * each * KEYS
    return (
        tl.where(share < shares, sequence, -1),
        share,
        shares,
        place,
        first_key,
        tl.minimum(first_key + each * KEYS, end),
    )


@triton.jit
def _blocks_of(starts, lengths, B, first, keys_of: tl.constexpr, KEYS: tl.constexpr):
    """How many blocks of keys each of 128 sequences from `first` on has; none if it has several tokens."""
    index = first + tl.arange(0, 128)
    start = tl.load(starts + index, mask=index < B, other=0)
    last = tl.load(starts + index + 1, mask=index < B, other=0)
    begin, end = keys_of(tl.load(lengths + index, mask=index < B, other=0).to(tl.int32), KEYS)
    return tl.where(last - start == 1, tl.cdiv(tl.maximum(end - begin, 1), KEYS), 0)


@triton.jit
def block_at(table, position, stop, BLOCK: tl.constexpr):
    """The block of the cache that holds a position, by a sequence's block table; of one beyond `stop`, the last block.

    Loops look it up one round ahead, so that what they read does not wait for it.
    """
    return tl.load(table + tl.maximum(tl.minimum(position, stop - 1), 0) // BLOCK)


@triton.jit
def soft_cap(scores, CAP: tl.constexpr, PRECISION: tl.constexpr):
    """CAP * tanh(scores / 2), in units of log 2, of scores in units of log 2 times CAP / 2.

    What the exponential form loses of scores near 0 is CAP times the rounding of 1, too much for products of fp32 (see
    `product`).
    """
    if PRECISION is None:
        return CAP * 1.4426950408889634 - (2 * CAP * 1.4426950408889634) / (1.0 + tl.exp2(scores))
    else:
        return (CAP * 1.4426950408889634) * tanh(scores * 0.34657359027997264)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """`acc` and the product of two matrices. PRECISION: None for those of 16 bits, "ieee" or "tf32" for fp32.

    Tensor cores know the first 11 bits of fp32 numbers: three products, of these and of what they leave, are off by
    2^-21. Splitting the numbers here, less two instructions a number, costs a third of what Triton makes of it.
    """
    if PRECISION == "tf32":
        first, second = _first_bits(a), _first_bits(b)
        acc = tl.dot(a - first, second, acc, input_precision="tf32")
        acc = tl.dot(first, b - second, acc, input_precision="tf32")
        return tl.dot(first, second, acc, input_precision="tf32")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _first_bits(a):
    return (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def weigh(scores, top, sums):
    """The weights of a block of keys; what the state before it is multiplied by; its top and sums after it."""
    next_top = tl.maximum(top, tl.max(scores, 1))
    keep = tl.exp2(top - next_top)
    weights = tl.exp2(scores - tl.expand_dims(next_top, 1))
    return weights, tl.expand_dims(keep, 1), next_top, add_weights(sums, keep, weights)


@triton.jit
def weigh_scaled(scores, inverse, top, sums):
    """As `weigh`, where the logarithms of the scales of values, which broadcast to scores, were added to scores.

    No weight is more than 1 then, scaled as it is and whatever the scales, which is what fp16 has room for. Sums are of
    weights without scales, times `inverse`.
    """
    next_top = tl.maximum(top, tl.max(scores, 1))
    keep = tl.exp2(top - next_top)
    weights = tl.exp2(scores - tl.expand_dims(next_top, 1))
    return weights, tl.expand_dims(keep, 1), next_top, add_weights(sums, keep, weights * inverse)


@triton.jit
def add_weights(sums, keep, weights):
    """The sums after a block, by key where they have as many axes as weights."""
    if len(sums.shape) == len(weights.shape):
        return sums * tl.expand_dims(keep, 1) + weights
    else:
        return sums * keep + tl.sum(weights, 1)


@triton.jit
def weigh_bounded(scores, sums):
    """Weights, and sums with them, where scores are known to be small: weights are taken as they are."""
    weights = tl.exp2(scores)
    if len(sums.shape) == len(weights.shape):
        return weights, sums + weights
    else:
        return weights, sums + tl.sum(weights, 1)


@triton.jit
def after_sums(keep, sums):
    """`keep` [rows, 1] as it is, but known only when `sums` [rows] are.

    What comes next in a loop is multiplied by it. Sums that nothing waits for are added up in the next round, and the
    weights of a block stay in registers until then.
    """
    return tl.where(tl.expand_dims(sums, 1) < 0, 0.0, keep)


@triton.jit
def join_states(top, total):
    """The top and total of rows over groups of keys [groups, rows], and what each group's values are multiplied by."""
    next_top = tl.max(top, 0)
    keep = tl.exp2(top - next_top[None, :])
    return next_top, tl.sum(total * keep, 0), keep


@triton.jit
def join_groups(acc, keep):
    """The values of rows [width, rows] over one, two or four groups of keys, multiplied by `keep` [groups, rows]."""
    # Halves are added rather than the axis summed: the groups are in different warps, and this exchanges them once.
    acc = acc * keep[:, None, :]
    if acc.shape[0] == 1:
        first, second = tl.reshape(acc, (acc.shape[1], acc.shape[2])), 0.0
    elif acc.shape[0] == 4:
        halves = tl.reshape(acc, (2, 2, acc.shape[1], acc.shape[2]))
        first, second = tl.split(tl.permute(halves, (2, 3, 0, 1)))
        first, second = tl.split(first + second)
    else:
        first, second = tl.split(tl.permute(acc, (1, 2, 0)))
    return first + second


@triton.jit
def factor_of(total):
    """What the values of rows are multiplied by in the end; those of one that sees nothing by zero."""
    return tl.where(total == 0, 0.0, 1.0 / total)


@triton.jit
def factor_with_sink(top, total, sink):
    """As `factor_of` after one more key, without a value, of score `sink` [rows]."""
    next_top = tl.maximum(top, sink)
    keep = tl.exp2(top - next_top)
    return keep / (total * keep + tl.exp2(sink - next_top))


@triton.jit
def unknown_zero(pointer):
    """Zero, but the compiler does not know: what it is added to is computed again, not kept in registers."""
    return (tl.load(pointer, volatile=True) - tl.load(pointer, volatile=True)).to(tl.int32)


@triton.jit
def store_state(states, place, top, total, row, ROWS: tl.constexpr):
    """Leave the top and total of a share of the keys at `place` for the program that merges them."""
    tl.store(states + (place * ROWS + row) * 2, top, mask=row < ROWS)
    tl.store(states + (place * ROWS + row) * 2 + 1, total, mask=row < ROWS)


@triton.jit
def store_values(partials, place, acc, row, column, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Leave values [column, row] of a share of the keys at `place`."""
    inside = (row < ROWS)[None, :] & (column < WIDTH)[:, None]
    tl.store(partials + ((place * ROWS + row) * WIDTH)[None, :] + column[:, None], acc, mask=inside)


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
        # The choice keeps products from being fused with the sums of other threads: each thread would round another
        # one of the two, and threads that hold the same sum would disagree.
        total = total * keep + tl.sum(tl.where(inside, totals * weights, 0.0), 0)
        acc = acc * keep[:, None] + tl.sum(tl.where(inside[:, :, None], accs * weights[:, :, None], 0.0), 0)
        top = next_top
    return top, total, acc
