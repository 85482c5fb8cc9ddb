"""The next token from a row of logits: which tokens may be chosen, and the choice among them.

The rules and their order are those of `llmc.runtime.sample`: temperature, top-k, top-p, min-p; ties are broken alike,
and a number in [0, 1) chooses by inverting the cumulative distribution over the tokens in order of their ids. Weights
are e^((logit - top) / temperature) in fp32, sums of blocks of them fp64.
"""

import triton
import triton.language as tl

from llmc.codegen.triton.library.ranking import ordered, rank, unordered


@triton.jit
def greatest(logits, start, stop, BLOCK: tl.constexpr):
    """The greatest rank of the logits from `start` to before `stop`."""
    best = tl.full([BLOCK], -0x8000000000000000, tl.int64)
    for first in range(start, stop, BLOCK):
        token = first + tl.arange(0, BLOCK)
        x = tl.load(logits + token, mask=token < stop, other=0.0)
        best = tl.maximum(best, tl.where(token < stop, rank(x, token), -0x8000000000000000))
    return tl.max(best)


@triton.jit
def weight(x, top, temperature):
    """The relative probability of a logit."""
    return tl.exp((x - top) / temperature)


@triton.jit
def threshold(logits, top, temperature, floor, wanted, BY_WEIGHT: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    """The least number v for which the tokens after v in the order of `ordered` are fewer than `wanted`, or weigh less.

    Only those not before `floor` count. Each pass over the logits leaves a ninth of the numbers that v can be.
    """
    low = tl.full([], -0x80000000, tl.int64)  # before all numbers
    high = ordered(top).to(tl.int64)
    step = tl.arange(0, 8).to(tl.int64) + 1
    while high - low > 1:
        tried = low + (high - low) * step // 9
        key_tried = tried.to(tl.int32)
        sums = tl.zeros([BLOCK, 8], tl.float32)
        for first in range(0, V, BLOCK):
            token = first + tl.arange(0, BLOCK)
            x = tl.load(logits + token, mask=token < V, other=float("-inf"))
            key = ordered(x)
            counts = (token < V) & (key >= floor)
            each = weight(x, top, temperature) if BY_WEIGHT else 1.0
            each = tl.where(counts, each, 0.0)
            sums += tl.where(key[:, None] > key_tried[None, :], each[:, None], 0.0)
        total = tl.sum(sums.to(tl.float64), axis=0)
        enough = total >= wanted
        low = tl.maximum(low, tl.max(tl.where(enough, tried, low)))
        high = tl.minimum(high, tl.min(tl.where(enough, high, tried)))
    return high.to(tl.int32)


@triton.jit
def weight_between(logits, top, temperature, floor, above, V: tl.constexpr, BLOCK: tl.constexpr):
    """The weight of all tokens that are not before `floor` and after `above`, fp64."""
    total = tl.zeros([], tl.float64)
    for first in range(0, V, BLOCK):
        token = first + tl.arange(0, BLOCK)
        x = tl.load(logits + token, mask=token < V, other=float("-inf"))
        key = ordered(x)
        inside = (token < V) & (key >= floor) & (key > above)
        total += tl.sum(tl.where(inside, weight(x, top, temperature), 0.0).to(tl.float64))
    return total


@triton.jit
def place_of_tie(logits, key, wanted, V: tl.constexpr, BLOCK: tl.constexpr):
    """The token that is the `wanted`-th (from 1) of those with a key, or the last of them."""
    found = 0
    last = 0
    for first in range(0, V, BLOCK):
        token = first + tl.arange(0, BLOCK)
        x = tl.load(logits + token, mask=token < V, other=float("-inf"))
        ties = (token < V) & (ordered(x) == key)
        place = tl.cumsum(ties.to(tl.int32)) + found
        last = tl.maximum(last, tl.max(tl.where(ties & (place <= wanted), token, 0)))
        found += tl.sum(ties.to(tl.int32))
    return last


@triton.jit
def allowed_weight(logits, first, top, temperature, least, last_tie, min_p, V: tl.constexpr, BLOCK: tl.constexpr):
    """The weights of a block of tokens, 0 for those that are ruled out."""
    token = first + tl.arange(0, BLOCK)
    x = tl.load(logits + token, mask=token < V, other=float("-inf"))
    key = ordered(x)
    each = weight(x, top, temperature)
    allowed = (token < V) & ((key > least) | ((key == least) & (token <= last_tie))) & (each >= min_p)
    return tl.where(allowed, each, 0.0)


@triton.jit
def draw(
    logits, top, temperature, top_k, top_p, min_p, uniform, sums,
    V: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """A token by its probability. top: the greatest logit; sums: BLOCKS fp64 numbers to work with, a power of two.

    temperature and top are fp32, the other numbers fp64, top_k int64.
    """
    least = tl.full([], -0x80000000, tl.int32)
    last_tie = tl.full([], V, tl.int32)
    if (top_k > 0) & (top_k < V):
        least = threshold(logits, top, temperature, least, top_k.to(tl.float64), False, V, BLOCK)
    if top_p < 1.0:
        wanted = top_p * weight_between(logits, top, temperature, least, -0x80000000, V, BLOCK)
        key = threshold(logits, top, temperature, least, wanted, True, V, BLOCK)
        before = weight_between(logits, top, temperature, least, key, V, BLOCK)
        value = unordered(key)
        missing = (wanted - before) / weight(value, top, temperature).to(tl.float64)
        ties = tl.maximum(tl.ceil(tl.minimum(missing, 1e9)), 1.0).to(tl.int32)
        last_tie = place_of_tie(logits, key, ties, V, BLOCK)
        least = key
    least_weight = min_p.to(tl.float32)
    for block in range(0, (V + BLOCK - 1) // BLOCK):
        each = allowed_weight(logits, block * BLOCK, top, temperature, least, last_tie, least_weight, V, BLOCK)
        tl.store(sums + block, tl.sum(each.to(tl.float64)))
    tl.debug_barrier()
    number = tl.arange(0, BLOCKS)
    known = tl.load(sums + number, mask=number < (V + BLOCK - 1) // BLOCK, other=0.0)
    reached = tl.cumsum(known)
    target = uniform * tl.sum(known)
    # rounding may leave no block or token beyond the target: the last one that has weight is meant
    block = tl.min(tl.where((reached > target) & (known > 0.0), number, BLOCKS))
    block = tl.where(block < BLOCKS, block, tl.max(tl.where(known > 0.0, number, 0)))
    target -= tl.sum(tl.where(number < block, known, 0.0))
    each = allowed_weight(logits, block * BLOCK, top, temperature, least, last_tie, least_weight, V, BLOCK)
    place = tl.arange(0, BLOCK)
    beyond = (tl.cumsum(each.to(tl.float64)) > target) & (each > 0.0)
    chosen = tl.min(tl.where(beyond, place, BLOCK))
    chosen = tl.where(chosen < BLOCK, chosen, tl.max(tl.where(each > 0.0, place, 0)))
    return block * BLOCK + chosen
