"""The next token from a row of logits: what each part of the row knows of it, and a choice without limits.

The rules and their order are those of `llmc.runtime.sample`: repetition penalty, temperature, then the limits (see
`limits`); ties are broken alike, and a number in [0, 1) chooses by inverting the cumulative distribution over the
tokens in order of their ids. Relative probabilities are computed in fp32 and added up as integers, so that sums do not
depend on the order in which programs come to them. `rate` is log2(e) / temperature throughout.
"""

import triton
import triton.language as tl

from llmc.codegen.triton.library.ranking import rank, ranked_value

UNIT = tl.constexpr(4398046511104.0)
"""The mass of the likeliest token, 2^42: a million such tokens still have a sum in int64."""
LOG2_E = tl.constexpr(1.4426950408889634)
NO_RANK = tl.constexpr(-0x8000000000000000)
"""Below all ranks."""


@triton.jit
def penalised(x, seen, penalty, token, V: tl.constexpr):
    """The logits of tokens, of which those whose bit is set in `seen` (int64 words) are less likely by a factor."""
    if penalty != 1.0:
        word = tl.load(seen + token // 64, mask=token < V, other=0)
        less = tl.where(x < 0.0, x * penalty, tl.div_rn(x, tl.zeros_like(x) + penalty))
        x = tl.where(((word >> (token % 64).to(tl.int64)) & 1) == 1, less, x)
    return x


@triton.jit
def scores(logits, seen, penalty, token, V: tl.constexpr):
    """The logits of tokens as they are compared; minus infinity for tokens from V on."""
    return penalised(tl.load(logits + token, mask=token < V, other=float("-inf")), seen, penalty, token, V)


@triton.jit
def mass(x, top, rate):
    """The relative probability of logits as an integer, UNIT at `top`, rounded down."""
    return tl.where(x > float("-inf"), tl.exp2((x - top) * rate) * UNIT, 0.0).to(tl.int64)


@triton.jit
def first_beyond(weights, target, SIZE: tl.constexpr):
    """The first place up to which SIZE weights add up to more than `target` (fp64).

    Rounding may leave none: it is the last that has any weight then.
    """
    place = tl.arange(0, SIZE)
    beyond = (tl.cumsum(weights).to(tl.float64) > target) & (weights > 0)
    found = tl.min(tl.where(beyond, place, SIZE))
    return tl.where(found < SIZE, found, tl.max(tl.where(weights > 0, place, 0)))


@triton.jit
def examine(x, token, rate, draws, part, ranks, masses):
    """Store the rank of the greatest of a part's scores, and their mass relative to that if the row `draws`."""
    best = tl.max(rank(x, token))
    tl.store(ranks + part, best)
    if draws:
        tl.store(masses + part, tl.sum(mass(x, ranked_value(best), rate)))


@triton.jit
def draw_freely(
    logits, seen, penalty, rate, uniform, top, ranks, masses,
    V: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """A token by its probability among all, of what `examine` stored of each of the PARTS (PADDED: a power of two).

    uniform: points at the bits of the number (fp64) that it is drawn with.
    """
    part = tl.arange(0, PADDED)
    inside = part < PARTS
    tops = ranked_value(tl.load(ranks + part, mask=inside, other=0))
    scale = tl.exp2((tops - top) * rate)
    of_part = tl.load(masses + part, mask=inside, other=0).to(tl.float64) * scale.to(tl.float64)
    share = tl.where(inside & (tops > float("-inf")), of_part, 0.0)
    target = tl.load(uniform).to(tl.float64, bitcast=True) * tl.sum(share)
    which = first_beyond(share, target, PADDED)
    target -= tl.sum(tl.where(part < which, share, 0.0))
    its_top = tl.sum(tl.where(part == which, tops, 0.0))
    its_scale = tl.sum(tl.where(part == which, scale, 0.0)).to(tl.float64)
    x = scores(logits, seen, penalty, which * PART + tl.arange(0, PART), V)
    return which * PART + first_beyond(mass(x, its_top, rate), target / its_scale, PART)


@triton.jit
def store_greatest(ranks, count, into):
    """Store the greatest ranks in order, `count` of them and at least one."""
    for place in range(0, tl.maximum(count, 1)):
        best = tl.max(tl.max(ranks, 0), 0) if len(ranks.shape) == 2 else tl.max(ranks, 0)
        tl.store(into + place, best)
        ranks = tl.where(ranks == best, NO_RANK, ranks)


@triton.jit
def examine_plain(x, token, count, part, likeliest, totals, V: tl.constexpr, MOST: tl.constexpr):
    """Store what log-probabilities take of a part's logits as they are: the `count` likeliest, and all their mass."""
    ranks = rank(x, token)
    top = ranked_value(tl.max(ranks, 0))
    tl.store(totals + part, tl.sum(mass(x, top, LOG2_E)))
    store_greatest(tl.where(token < V, ranks, NO_RANK), count, likeliest + part * MOST)


@triton.jit
def merge_plain(
    likeliest, totals, count, ranked, total,
    PARTS: tl.constexpr, PADDED: tl.constexpr, MOST: tl.constexpr, PADDED_MOST: tl.constexpr,
):  # fmt: skip
    """Store the `count` likeliest of all parts, and the sum of e^(logit - top) (the bits of fp64)."""
    part, place = tl.arange(0, PADDED), tl.arange(0, PADDED_MOST)
    kept = (part < PARTS)[:, None] & (place < tl.maximum(count, 1))[None, :]
    ranks = tl.load(likeliest + part[:, None] * MOST + place[None, :], mask=kept, other=NO_RANK)
    tops = ranked_value(tl.max(ranks, 1))
    best = tl.max(tl.max(ranks, 1), 0)
    scale = tl.exp2((tops - ranked_value(best)) * LOG2_E).to(tl.float64) / UNIT
    of_part = tl.load(totals + part, mask=part < PARTS, other=0).to(tl.float64)
    summed = tl.sum(tl.where(of_part > 0.0, of_part * scale, 0.0))
    tl.store(total, summed.to(tl.int64, bitcast=True))
    store_greatest(ranks, count, ranked)
