"""Which slots belong to which expert. A slot is a token and one of its experts; tiles hold slots of one expert."""

import triton
import triton.language as tl


@triton.jit
def sort_slots(ids, count, expert, order, counts, BLOCK: tl.constexpr):
    """One expert's part of a sort by expert: its slots, in ascending order, after those of experts before it.

    ids: [count] int64 experts. order: [count] int64 slots, written where this expert's lie; counts[expert] is written.
    """
    before = 0
    own = 0
    for start in range(0, count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        chosen = tl.load(ids + slot, mask=slot < count, other=1 << 30)
        before += tl.sum((chosen < expert).to(tl.int32))
        own += tl.sum((chosen == expert).to(tl.int32))
    tl.store(counts + expert, own.to(tl.int64))
    for start in range(0, count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        mine = tl.load(ids + slot, mask=slot < count, other=1 << 30) == expert
        place = tl.cumsum(mine.to(tl.int32)) - 1
        tl.store(order + before + place, slot.to(tl.int64), mask=mine)
        before += tl.sum(mine.to(tl.int32))


@triton.jit
def slots_of_tile(counts, tile, EXPERTS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """The expert of a tile of ROWS slots (EXPERTS if there is no such tile), where its slots begin in the order of
    `sort_slots`, and how many are left of the expert's. PADDED: a power of two from EXPERTS on.
    """
    expert = tl.arange(0, PADDED)
    count = tl.load(counts + expert, mask=expert < EXPERTS, other=0).to(tl.int32)
    tiles = (count + ROWS - 1) // ROWS
    found = tl.sum((tl.cumsum(tiles) <= tile).to(tl.int32))
    earlier = expert < found
    within = (tile - tl.sum(tl.where(earlier, tiles, 0))) * ROWS
    start = tl.sum(tl.where(earlier, count, 0)) + within
    left = tl.sum(tl.where(expert == found, count, 0)) - within
    return tl.minimum(found, EXPERTS), start, left


@triton.jit
def slots_before(ids, count, slot, PADDED: tl.constexpr):
    """The expert of a slot, and how many of the slots before it have the same. PADDED: a power of two from count on.

    ids: [count] int64 experts.
    """
    place = tl.arange(0, PADDED)
    chosen = tl.load(ids + place, mask=place < count, other=1 << 30)
    expert = tl.load(ids + slot)
    return expert.to(tl.int32), tl.sum(((chosen == expert) & (place < slot)).to(tl.int32))


@triton.jit
def slots_from(ids, count, expert, first, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """Up to ROWS slots of an expert in ascending order, from its slot number `first` on, and which there are."""
    place = tl.arange(0, PADDED)
    same = tl.load(ids + place, mask=place < count, other=1 << 30) == expert
    number = tl.cumsum(same.to(tl.int32)) - 1 - first
    found = same[:, None] & (number[:, None] == tl.arange(0, ROWS)[None, :])
    slots = tl.sum(tl.where(found, place[:, None], 0), 0)
    return slots.to(tl.int64), tl.sum(found.to(tl.int32), 0) > 0
