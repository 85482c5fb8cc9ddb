"""Where each intermediate value lives: interval colouring of buffers over their lifetimes.

    plan(buffers: Sequence[Buffer], alignment=64) -> Plan
    Buffer(key, first, last, size, unit="token" | "row" | "fixed", place=None, over=None)
    Plan.offsets[key]   bytes, in the area of the buffer's unit
    Plan.address(key, tokens) -> bytes from the start of the arena; Plan.bytes(tokens) -> size of the arena

The arena is one allocation in two areas. The fixed area comes first: what does not grow with the step. After it, a
buffer of `size` bytes a token lies at `offset * tokens`, `tokens` rows one after another; rows of logits are at most
as many as tokens, so buffers of rows share that area. `tokens` may be the capacity of the arena or the tokens of the
step itself, which packs a decode step into a few cache lines: nothing but the fixed area outlives a step. Offsets are
multiples of the alignment, so every address is, whatever `tokens`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal

Unit = Literal["token", "row", "fixed"]
"""What a buffer's size is given for: each token of the step, each wanted row of logits, or all in all."""

IMPROVEMENTS = 40
"""How often the greedy order is revised when it misses the lower bound."""


@dataclass(frozen=True)
class Buffer:
    """Memory that must hold a value from the region that first writes it to the region that last reads it."""

    key: Hashable
    first: int
    """Number of the region that first writes it."""
    last: int
    """Number of the region that last reads or writes it, at least `first`; both are in use during that region."""
    size: int
    """Bytes for each of `unit`."""
    unit: Unit = "token"
    place: Hashable = None
    """Buffers of the same place, other than None, must get the same offset."""
    over: Hashable = None
    """Key of a buffer that may be written over: its last reader is region `first`, and reads each element only to
    compute the element of this buffer that replaces it."""


@dataclass(frozen=True)
class Plan:
    """Offsets of buffers, and how good they are."""

    offsets: Mapping[Hashable, int]
    """Bytes a token (bytes, for fixed buffers) at which each buffer begins in its area."""
    units: Mapping[Hashable, Unit]
    per_token: int
    """Bytes of the arena for each token."""
    fixed: int
    """Bytes of the arena however many tokens there are."""
    no_reuse: int
    """Bytes a token, were each buffer to have memory of its own."""
    lower_bound: int
    """Bytes a token that are live at once in some region: no plan needs fewer."""

    def address(self, key: Hashable, tokens: int) -> int:
        """Where a buffer begins in an arena of `tokens` tokens, in bytes."""
        offset = self.offsets[key]
        return offset if self.units[key] == "fixed" else self.fixed + offset * tokens

    def bytes(self, tokens: int) -> int:
        """Size of an arena of `tokens` tokens."""
        return self.fixed + self.per_token * tokens

    def __str__(self) -> str:
        saved = f"{self.no_reuse} without reuse, {self.lower_bound} live at once"
        return f"{self.per_token} bytes a token ({saved}) and {self.fixed} bytes"


@dataclass(frozen=True)
class _Block:
    """Buffers that share a place, as one."""

    keys: tuple[Hashable, ...]
    first: int
    last: int
    size: int


def plan(buffers: Sequence[Buffer], alignment: int = 64) -> Plan:
    """Place `buffers` so that no two that are in use during the same region share memory, unless they must or may.

    Deterministic: greedy best fit in several orders, the best kept; `Plan` says how far that is from the bound.

    Raises ValueError if a lifetime is empty, a size negative or a key given twice, or if buffers of one place have
    different units or are in use during the same region without the later being `over` the earlier.
    """
    _check(buffers)
    offsets: dict[Hashable, int] = {}
    totals: dict[bool, int] = {}
    for fixed in (False, True):
        chosen = [buffer for buffer in buffers if (buffer.unit == "fixed") == fixed]
        attempts = [_place(_blocks(chosen, alignment, overwrite), alignment) for overwrite in (True, False)]
        placed, totals[fixed] = min(attempts, key=lambda attempt: attempt[1])
        offsets.update(placed)
    moving = [buffer for buffer in buffers if buffer.unit != "fixed"]
    return Plan(
        offsets=offsets,
        units={buffer.key: buffer.unit for buffer in buffers},
        per_token=totals[False],
        fixed=totals[True],
        no_reuse=sum(_round_up(buffer.size, alignment) for buffer in moving),
        lower_bound=_most_live(_spans(moving, alignment)),
    )


def _check(buffers: Sequence[Buffer]) -> None:
    by_place: dict[Hashable, list[Buffer]] = {}
    keys = set()
    for buffer in buffers:
        if buffer.last < buffer.first or buffer.size < 0:
            raise ValueError(f"buffer {buffer.key!r}: {buffer.size} bytes from {buffer.first} to {buffer.last}")
        if buffer.key in keys:
            raise ValueError(f"buffer {buffer.key!r} is given twice")
        keys.add(buffer.key)
        if buffer.place is not None:
            by_place.setdefault(buffer.place, []).append(buffer)
    for place, sharing in by_place.items():
        if len({buffer.unit == "fixed" for buffer in sharing}) > 1:
            raise ValueError(f"place {place!r}: buffers of different units")
        sharing.sort(key=lambda buffer: (buffer.first, buffer.last))
        for before, after in pairwise(sharing):
            if after.first < before.last or (after.first == before.last and after.over != before.key):
                raise ValueError(f"place {place!r}: {before.key!r} and {after.key!r} are in use at the same time")


def _blocks(buffers: Sequence[Buffer], alignment: int, overwrite: bool) -> list[_Block]:
    """Buffers joined by their place and, if `overwrite`, with what they may be written over."""
    by_key = {buffer.key: buffer for buffer in buffers}
    parent: dict[Hashable, Hashable] = {key: key for key in by_key}

    def root(key: Hashable) -> Hashable:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    members = {key: [buffer] for key, buffer in by_key.items()}

    def join(one: Hashable, other: Hashable) -> None:
        one, other = root(one), root(other)
        if one != other:
            parent[other] = one
            members[one] += members.pop(other)

    first_of_place: dict[Hashable, Hashable] = {}
    for buffer in buffers:
        if buffer.place is not None:
            join(first_of_place.setdefault(buffer.place, buffer.key), buffer.key)
    for buffer in buffers if overwrite else ():
        below = by_key.get(buffer.over)
        if below is None or not _follows(buffer, below) or root(below.key) == root(buffer.key):
            continue
        pairs = product(members[root(buffer.key)], members[root(below.key)])
        if all(_disjoint(one, other) or _follows(one, other) or _follows(other, one) for one, other in pairs):
            join(below.key, buffer.key)
    return [
        _Block(
            tuple(buffer.key for buffer in group),
            min(buffer.first for buffer in group),
            max(buffer.last for buffer in group),
            max(_round_up(buffer.size, alignment) for buffer in group),
        )
        for group in members.values()
    ]


def _follows(buffer: Buffer, below: Buffer) -> bool:
    """Whether `buffer` may be written over `below`."""
    same_size = (below.size, below.unit) == (buffer.size, buffer.unit)
    return buffer.over is not None and buffer.over == below.key and below.last == buffer.first and same_size


def _disjoint(one: Buffer, other: Buffer) -> bool:
    return one.last < other.first or other.last < one.first


def _place(blocks: Sequence[_Block], alignment: int) -> tuple[dict[Hashable, int], int]:
    """Offsets by key, and the total."""
    bound = _most_live([(block.first, block.last, block.size) for block in blocks])
    orders: list[Callable[[_Block], tuple[int, ...]]] = [
        lambda block: (-block.size, -(block.last - block.first), block.first),
        lambda block: (-block.size * (block.last - block.first + 1), block.first),
        lambda block: (-(block.last - block.first), -block.size, block.first),
        lambda block: (block.first, -block.size, -block.last),
    ]
    best: list[int] = []
    best_order: list[int] = []
    best_total = -1
    for order in orders:
        sequence = sorted(range(len(blocks)), key=lambda number: order(blocks[number]))
        offsets, total = _greedy(blocks, sequence)
        if best_total < 0 or total < best_total:
            best, best_order, best_total = offsets, sequence, total
    sequence = best_order
    for _ in range(IMPROVEMENTS if len(blocks) <= 300 else 0):
        if best_total <= bound:
            break
        offsets, total = _greedy(blocks, sequence)
        if total < best_total:
            best, best_total = offsets, total
        highest = max(sequence, key=lambda number: (offsets[number] + blocks[number].size, -sequence.index(number)))
        sequence = [highest, *(number for number in sequence if number != highest)]
    return {key: best[number] for number, block in enumerate(blocks) for key in block.keys}, max(best_total, 0)


def _greedy(blocks: Sequence[_Block], sequence: Sequence[int]) -> tuple[list[int], int]:
    """Each block in turn in the smallest gap that it fits, among those in use at the same time."""
    offsets = [0] * len(blocks)
    live: dict[int, list[int]] = {}
    total = 0
    for number in sequence:
        block = blocks[number]
        if block.size == 0:
            continue
        regions = range(block.first, block.last + 1)
        others = {other for region in regions for other in live.get(region, ())}
        end, gap, chosen = 0, -1, -1
        for start, size in sorted((offsets[other], blocks[other].size) for other in others):
            if start - end >= block.size and (gap < 0 or start - end < gap):
                gap, chosen = start - end, end
            end = max(end, start + size)
        offsets[number] = end if chosen < 0 else chosen
        total = max(total, offsets[number] + block.size)
        for region in regions:
            live.setdefault(region, []).append(number)
    return offsets, total


def _spans(buffers: Sequence[Buffer], alignment: int) -> list[tuple[int, int, int]]:
    """First and last region and size of each buffer; one that may be written over another begins a region later."""
    by_key = {buffer.key: buffer for buffer in buffers}
    spans = []
    for buffer in buffers:
        below = by_key.get(buffer.over)
        later = below is not None and _follows(buffer, below)
        spans.append((buffer.first + later, buffer.last, _round_up(buffer.size, alignment)))
    return spans


def _most_live(spans: Sequence[tuple[int, int, int]]) -> int:
    """The largest sum of sizes in one region, of spans (first region, last region, size)."""
    changes: dict[int, int] = {}
    for first, last, size in spans:
        if first <= last:
            changes[first] = changes.get(first, 0) + size
            changes[last + 1] = changes.get(last + 1, 0) - size
    most = live = 0
    for region in sorted(changes):
        live += changes[region]
        most = max(most, live)
    return most


def _round_up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
