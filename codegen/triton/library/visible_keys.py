"""Which blocks of keys programs of attention visit: those with keys that the mask lets a query see.

A mask's keys are one range, or two with a gap between them that is passed over. Keys are then counted without the gap.
"""

import triton
import triton.language as tl


@triton.jit
def floor_by(x, SIZE: tl.constexpr):
    """x / SIZE rounded down, where SIZE is positive; Triton's own rounds towards zero."""
    return tl.where(x < 0, x - (SIZE - 1), x) // SIZE


@triton.jit
def two_ranges(low, end, other_low, other_end, KEYS: tl.constexpr):
    """Two ranges of keys, each from `low` up to `end`, none of these negative, in blocks of KEYS: where the first block
    begins, after how many keys the gap is, how many keys are in it, and the end of the last range.
    """
    none, other_none = end <= low, other_end <= other_low
    first = tl.where(none, other_low, low) // KEYS * KEYS
    second = tl.where(other_none, low, other_low) // KEYS * KEYS
    first_end, second_end = tl.where(none, other_end, end), tl.where(other_none, end, other_end)
    gap_at = tl.cdiv(tl.where(first <= second, first_end, second_end), KEYS) * KEYS
    gap = tl.maximum(tl.maximum(first, second) - gap_at, 0)
    return tl.minimum(first, second), gap_at, gap, tl.maximum(first_end, second_end)


@triton.jit
def past_gap(place, gap_at, gap):
    """The key that is at a place counted without the gap."""
    return place + tl.where(place >= gap_at, gap, 0)


@triton.jit
def whole_count(length, KEYS: tl.constexpr):
    """All keys of the blocks in a list of `length` keys, as `find_share` asks for them."""
    return length * 0, length


@triton.jit
def listed_block(entries, table, visited, count, long, KEYS: tl.constexpr, BLOCK: tl.constexpr):
    """The entry of the block that `visited` of `count` keys are before: its first key, and the cache's block above bit
    32. Of a sequence that is `long`er than lists are, all blocks are visited; there are none beyond the last.
    """
    place = tl.maximum(tl.minimum(visited, count - KEYS), 0)
    entry = tl.load(entries + place // KEYS, mask=long == 0, other=0)
    return tl.where(long, (tl.load(table + place // BLOCK, mask=long, other=0) << 32) | place, entry)
