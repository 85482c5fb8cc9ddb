"""Which tokens may be drawn where top-k, top-p or min-p rule some out, and the choice among the others.

The masses of a row (see `sampling`) are added up in bins by the distance from the greatest score, 48 to a halving of
the probability. They tell in which bins the limits of top-k and top-p fall: at most two bins and what lies between two
bounds of top-p's. Tokens before them are surely kept, those in them are listed, and one program finds the exact limits
in the list. Everything that programs add up together is an integer: the order in which they come changes nothing.

A row's state is eight int64 numbers: the bin of top-k's limit, how many tokens of that bin it takes, the mass before
it, the first and last bin that top-p's limit can be in, the mass before the first, the mass of all, and how many
tokens are listed. A bin of BINS is a limit that rules out nothing.
"""

import triton
import triton.language as tl

from llmc.codegen.triton.library.ranking import ordered, rank, ranked_index, unordered
from llmc.codegen.triton.library.sampling import NO_RANK, first_beyond, mass, scores

BINS = tl.constexpr(2048)
PER_OCTAVE = tl.constexpr(48.0)
TOP_K, TOP_P, TIES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""The limits that are looked for, one after another: the last which of equally likely tokens are within top-p's."""


@triton.jit
def bin_of(x, top, rate):
    """The bin of a score; of those that have a mass the last is 2015."""
    return tl.minimum((top - x) * rate * PER_OCTAVE, 2047.0).to(tl.int32)


@triton.jit
def fill_bins(x, top, rate, counting, counts, masses):
    """Add the masses of some scores to the bins, and if `counting` their number."""
    each, where = mass(x, top, rate), bin_of(x, top, rate)
    tl.atomic_add(masses + where, each, mask=each > 0, sem="relaxed")
    if counting:
        tl.atomic_add(counts + where, tl.full(x.shape, 1, tl.int64), mask=each > 0, sem="relaxed")


@triton.jit
def find_bins(counts, masses, counting, top_k, top_p, state):
    """Store the bins that the limits fall into, of full bins, which are empty then."""
    number = tl.arange(0, BINS)
    weighed, counted = tl.load(masses + number), tl.load(counts + number)
    k_bin = tl.full([], BINS, tl.int32)
    if counting:
        k_bin = tl.min(tl.where(tl.cumsum(counted) >= top_k, number, BINS))
    before_k = tl.sum(tl.where(number < k_bin, weighed, 0))
    up_to_k = tl.sum(tl.where(number <= k_bin, weighed, 0))
    first = tl.full([], BINS, tl.int32)
    last = tl.full([], BINS, tl.int32)
    if top_p < 1.0:
        reached = tl.cumsum(weighed).to(tl.float64)
        first = tl.min(tl.where(reached >= top_p * before_k.to(tl.float64), number, k_bin))
        last = tl.min(tl.where(reached >= top_p * up_to_k.to(tl.float64), number, k_bin))
    tl.store(state, k_bin.to(tl.int64))
    tl.store(state + 1, top_k - tl.sum(tl.where(number < k_bin, counted, 0)))
    tl.store(state + 2, before_k)
    tl.store(state + 3, first.to(tl.int64))
    tl.store(state + 4, last.to(tl.int64))
    tl.store(state + 5, tl.sum(tl.where(number < first, weighed, 0)))
    tl.store(state + 6, up_to_k)
    tl.store(state + 7, tl.zeros([], tl.int64))
    tl.debug_barrier()
    tl.store(masses + number, tl.zeros([BINS], tl.int64))
    tl.store(counts + number, tl.zeros([BINS], tl.int64))


@triton.jit
def divide(x, token, top, rate, least_mass, k_bin, first, last, part, masses, found, listed, ROOM: tl.constexpr):
    """Store the mass of the tokens of a part that are surely kept, and append those that may be to the list.

    k_bin, first, last: the bins of the limits. found: counts the tokens of the list, which has room for the ranks of
    ROOM of them; those beyond are not written.
    """
    each, where = mass(x, top, rate), bin_of(x, top, rate)
    sure = (each >= least_mass) & (where < tl.minimum(k_bin, first))
    tl.store(masses + part, tl.sum(tl.where(sure, each, 0)))
    undecided = (each > 0) & ((where == k_bin) | ((where >= first) & (where <= last)))
    count = tl.sum(undecided.to(tl.int32))
    if count > 0:
        start = tl.atomic_add(found, count.to(tl.int64), sem="relaxed").to(tl.int32)
        place = start + tl.cumsum(undecided.to(tl.int32)) - 1
        tl.store(listed + place, rank(x, token), mask=undecided & (place < ROOM))


@triton.jit
def tokens_at(row, place, list, V: tl.constexpr):
    """The tokens at places of a list, their scores in `ordered`, and their masses, which are 0 outside of its bins."""
    logits, seen, penalty, rate, top = row
    listed, count, whole, first, last = list
    if whole:
        token = place
        key = ordered(scores(logits, seen, penalty, token, V))
    else:
        found = tl.load(listed + place, mask=place < count, other=NO_RANK)
        token = ranked_index(found).to(tl.int32)
        key = (found >> 32).to(tl.int32)
    x = unordered(key)
    where = bin_of(x, top, rate)
    return token, key, tl.where((where >= first) & (where <= last), mass(x, top, rate), 0)


@triton.jit
def amounts(row, place, list, stage, floor, V: tl.constexpr):
    """What `limit` orders tokens by, what it adds up, and the masses."""
    token, key, each = tokens_at(row, place, list, V)
    added = (each > 0) & tl.where(stage == TIES, key == floor, key >= floor)
    order = tl.where(stage == TIES, -token, key).to(tl.int64)
    return order, tl.where(added, tl.where(stage == TOP_P, each, 1), 0), each


@triton.jit
def limit(row, list, stage, floor, wanted, V: tl.constexpr, BLOCK: tl.constexpr):
    """The least number v for which what lies after v adds up to less than `wanted` (fp64).

    Added up are the tokens of a list whose score is not before `floor` in `ordered`: their number (TOP_K) or mass
    (TOP_P) in the order of scores, or, for TIES, the number of those at `floor` in the order of -token.
    """
    low = tl.full([], 0x7FFFFFFF, tl.int64)
    high = tl.full([], -0x80000000, tl.int64)
    for start in range(0, list[1], BLOCK):
        order, amount, _ = amounts(row, start + tl.arange(0, BLOCK), list, stage, floor, V)
        low = tl.minimum(low, tl.min(tl.where(amount > 0, order, 0x7FFFFFFF)))
        high = tl.maximum(high, tl.max(tl.where(amount > 0, order, -0x80000000)))
    low -= 1
    step = tl.arange(0, 8).to(tl.int64) + 1
    while high - low > 1:  # each round leaves a ninth of the numbers that v can be
        tried = low + (high - low) * step // 9
        total = tl.zeros([8], tl.int64)
        for start in range(0, list[1], BLOCK):
            order, amount, _ = amounts(row, start + tl.arange(0, BLOCK), list, stage, floor, V)
            total += tl.sum(tl.where(order[:, None] > tried[None, :], amount[:, None], 0), 0)
        enough = total.to(tl.float64) >= wanted
        low = tl.maximum(low, tl.max(tl.where(enough, tried, low)))
        high = tl.minimum(high, tl.min(tl.where(enough, high, tried)))
    return high.to(tl.int32)


@triton.jit
def mass_after(row, list, key, V: tl.constexpr, BLOCK: tl.constexpr):
    """The mass of the tokens of a list whose scores are after `key` in `ordered`."""
    total = tl.zeros([], tl.int64)
    for start in range(0, list[1], BLOCK):
        _, keys, each = tokens_at(row, start + tl.arange(0, BLOCK), list, V)
        total += tl.sum(tl.where(keys > key, each, 0))
    return total


@triton.jit
def find_limits(row, top_p, state, listed, count, whole, V: tl.constexpr, BLOCK: tl.constexpr):
    """The least score that may be drawn, in `ordered`, and the last token that may be at that score."""
    k_bin, first_bin, last_bin = tl.load(state), tl.load(state + 3), tl.load(state + 4)
    least = tl.full([], -0x80000000, tl.int32)
    last_token = tl.full([], V, tl.int32)
    wanted = tl.load(state + 1).to(tl.float64)
    kept = tl.load(state + 6)
    for stage in range(0, 3):  # one loop, so that the search is there once
        first = tl.where(stage == TOP_K, k_bin, first_bin)
        last = tl.where(stage == TOP_K, k_bin, last_bin)
        if first < BINS:
            if stage == TOP_P:
                wanted = top_p * kept.to(tl.float64) - tl.load(state + 5).to(tl.float64)
            list = (listed, count, whole, first, last)
            found = limit(row, list, stage, least, wanted, V, BLOCK)
            if stage == TIES:
                last_token = -found
            else:
                least = found
                after = mass_after(row, list, found - tl.where(stage == TOP_K, 1, 0), V, BLOCK)
                if stage == TOP_K:
                    kept = tl.load(state + 2) + after
                else:
                    missing = wanted - after.to(tl.float64)
                    wanted = tl.maximum(tl.ceil(missing / mass(unordered(found), row[4], row[3]).to(tl.float64)), 1.0)
    return least, last_token


@triton.jit
def draw_within(
    row, uniform, least_mass, top_p, state, listed, masses,
    V: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr, ROOM: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A token by its probability among those within the limits; `masses` of each part are of what is surely kept.

    uniform: points at the bits of the number (fp64) that it is drawn with.
    """
    logits, seen, penalty, rate, top = row
    count = tl.load(state + 7).to(tl.int32)
    whole = count > ROOM  # then all tokens are the list
    count = tl.where(whole, V, count)
    least, last_token = find_limits(row, top_p, state, listed, count, whole, V, BLOCK)
    list = (listed, count, whole, tl.minimum(tl.load(state), tl.load(state + 3)), BINS)
    for start in range(0, count, BLOCK):
        token, key, each = tokens_at(row, start + tl.arange(0, BLOCK), list, V)
        kept = (each >= least_mass) & ((key > least) | ((key == least) & (token <= last_token)))
        tl.atomic_add(masses + token // PART, each, mask=kept, sem="relaxed")
    tl.debug_barrier()
    part = tl.arange(0, PADDED)
    share = tl.load(masses + part, mask=part < PARTS, other=0)
    target = tl.load(uniform).to(tl.float64, bitcast=True) * tl.sum(share).to(tl.float64)
    which = first_beyond(share, target, PADDED)
    target -= tl.sum(tl.where(part < which, share, 0)).to(tl.float64)
    token = which * PART + tl.arange(0, PART)
    x = scores(logits, seen, penalty, token, V)
    each, key = mass(x, top, rate), ordered(x)
    kept = (each >= least_mass) & ((key > least) | ((key == least) & (token <= last_token)))
    return which * PART + first_beyond(tl.where(kept, each, 0), target, PART)
