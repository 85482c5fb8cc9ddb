"""The repeated layer, found once: runs of regions that are the same but for their weights.

    find_loops(items: Sequence[Item], results=frozenset()) -> tuple[Loop, ...]      in order, disjoint
    Item(key, inputs, outputs, weights=(), caches=(), over=())      one for each region, in order
    Loop.start, .period, .count                     items[start : start + period] is the body, run `count` times
    Loop.weights[i], .caches[i]                     names in iteration i, in the order in which the body reads them
    Loop.carried                                    Carried(initial, update): the value that enters the first iteration,
                                                    and the body's value that takes its place for the next one
    Loop.invariant                                  values from before the loop that every iteration reads
    Loop.results                                    values of the last iteration that are read after the loop
    Loop.twins                                      {value of any iteration: the value of the first that it is}

A loop in the program is then exact: running the body `count` times, with the i-th weights and caches and with each
`update` written to the memory of its `initial`, computes the same as the items in a row. That memory can be one place,
because a value is only carried if the one before it is no longer read when it is written.

How: for each period, the places where an item and the one a period later have equal keys, and read values that are
defined a period apart, or the same ones. A candidate is a start, a period and a count; the one that saves most items is
checked whole, and what is left on both sides is searched in the same way. The candidates of one period take linear
time; periods that no run of equal keys supports cost nothing but a comparison of integers.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

Value = Hashable
"""What a region reads or writes: a number, a name."""


@dataclass(frozen=True)
class Item:
    """A region as far as repetition is concerned."""

    key: Hashable
    """Everything but names: kernel, shapes, constants. Regions of equal keys run the same code."""
    inputs: tuple[Value, ...]
    """What it reads, in a fixed order; weights and caches aside."""
    outputs: tuple[Value, ...]
    """What it writes; a value written by several regions is the first one's, and read by the others."""
    weights: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    over: tuple[tuple[Value, Value], ...] = ()
    """Pairs (output, input) such that each element of the input is read only to compute the element of the output that
    may be written over it."""


@dataclass(frozen=True)
class Carried:
    """A value that one iteration hands to the next."""

    initial: Value
    """Defined before the loop; the first iteration reads it."""
    update: Value
    """What the first iteration defines in its stead."""


@dataclass(frozen=True)
class Loop:
    """Items that run several times with other weights and caches; see the head of this module."""

    start: int
    period: int
    count: int
    weights: tuple[tuple[str, ...], ...]
    caches: tuple[tuple[str, ...], ...]
    carried: tuple[Carried, ...]
    invariant: tuple[Value, ...]
    results: tuple[Value, ...]
    twins: Mapping[Value, Value] = field(repr=False)

    @property
    def stop(self) -> int:
        """The first item after the loop."""
        return self.start + self.period * self.count

    @property
    def saved(self) -> int:
        """How many items need no code of their own."""
        return self.period * (self.count - 1)

    def body(self) -> range:
        """The items of the first iteration."""
        return range(self.start, self.start + self.period)


def find_loops(items: Sequence[Item], results: Iterable[Value] = ()) -> tuple[Loop, ...]:
    """The loops in `items`, in order and disjoint, those that save most first served.

    results: values that are read after the last item, such as the logits.
    """
    search = _Search(items, frozenset(results))
    found: list[Loop] = []
    open_ranges = [(0, len(items))]
    while open_ranges:
        low, high = open_ranges.pop()
        loop = search.best(low, high)
        if loop is not None:
            found.append(loop)
            open_ranges += [(low, loop.start), (loop.stop, high)]
    return tuple(sorted(found, key=lambda loop: loop.start))


def find_loop(items: Sequence[Item], results: Iterable[Value] = ()) -> Loop | None:
    """The loop that saves most, or None if nothing repeats."""
    return max(find_loops(items, results), key=lambda loop: loop.saved, default=None)


class _Search:
    def __init__(self, items: Sequence[Item], results: frozenset[Value]) -> None:
        self.items = items
        numbers: dict[Hashable, int] = {}
        shapes = [
            (item.key, len(item.inputs), len(item.outputs), len(item.weights), len(item.caches)) for item in items
        ]
        self.keys = [numbers.setdefault(shape, len(numbers)) for shape in shapes]
        self.defined: dict[Value, tuple[int, int]] = {}
        """Where each value is first written: item and place among its outputs."""
        self.last_read: dict[Value, int] = dict.fromkeys(results, len(items))
        self.reads: list[tuple[Value, ...]] = []
        """What each item needs to have been defined before: inputs, and outputs that it does not define itself."""
        for number, item in enumerate(items):
            for place, value in enumerate(item.outputs):
                self.defined.setdefault(value, (number, place))
            partly = tuple(value for value in item.outputs if self.defined[value][0] != number)
            self.reads.append(item.inputs + partly)
            for value in item.inputs + item.outputs:
                self.last_read[value] = max(number, self.last_read.get(value, 0))

    def best(self, low: int, high: int) -> Loop | None:
        """The loop in items[low:high] that saves most; among equals the shortest body, the fewest values carried."""
        candidates = [
            (period * (count - 1), period, start, count)
            for period in range(1, (high - low) // 2 + 1)
            for start, count in self._candidates(low, high, period)
        ]
        candidates.sort(key=lambda candidate: (-candidate[0], candidate[1], candidate[2]))
        shorter: Loop | None = None
        for (saved, _), group in groupby(candidates, key=lambda candidate: candidate[:2]):
            if shorter is not None and shorter.saved >= saved:
                return shorter
            loops = []
            for _, period, start, count in group:
                loop = self._loop(start, period, count)
                if loop is not None and loop.saved == saved:
                    loops.append(loop)
                elif loop is not None and (shorter is None or loop.saved > shorter.saved):
                    shorter = loop
            if loops:
                return min(loops, key=lambda loop: (len(loop.carried), loop.start))
        return shorter

    def _candidates(self, low: int, high: int, period: int) -> Iterator[tuple[int, int]]:
        """Starts and the largest counts that the keys and the distances of what is read allow."""
        keys = self.keys
        length = high - low - period
        equal = [keys[low + i] == keys[low + i + period] for i in range(length)]
        if not _has_run(equal, period):
            return
        alike = [same and self._alike(low + i, period) for i, same in enumerate(equal)]
        key_ends, alike_ends = _run_ends(equal), _run_ends(alike)
        for start in range(length - period + 1):
            if key_ends[start] - start < period:
                continue
            end = key_ends[start]
            if start + period < length:  # from the second iteration on, what is read must be a period apart
                end = min(end, alike_ends[start + period])
            count = 1 + (end - start) // period
            yield low + start, count

    def _alike(self, number: int, period: int) -> bool:
        """Whether an item and the one a period later read the same values, or values defined a period apart."""
        for one, other in zip(self.reads[number], self.reads[number + period], strict=False):
            if one != other:
                first, second = self.defined.get(one), self.defined.get(other)
                if first is None or second is None or (second[0] - first[0], second[1]) != (period, first[1]):
                    return False
        return len(self.reads[number]) == len(self.reads[number + period])

    def _loop(self, start: int, period: int, count: int) -> Loop | None:
        """The loop, or with fewer iterations if values of an earlier one are read after it; None if there is none."""
        if count < 2:
            return None
        stop = start + period * count
        for number in range(start, stop - period):
            for value in self.items[number].outputs:
                if self.last_read[value] >= stop:  # an earlier iteration's value is wanted after the loop
                    return self._loop(start, period, (number - start) // period + 1)
        carried: dict[Value, Value] = {}
        invariant: dict[Value, None] = {}
        for offset in range(period):
            for place in range(len(self.reads[start + offset])):
                values = [self.reads[number][place] for number in range(start + offset, stop, period)]
                if not self._consistent(values, start, period, carried, invariant):
                    return None
        if len(set(carried.values())) < len(carried) or any(value in invariant for value in carried):
            return None
        if not all(self._one_place(initial, update, start, period) for initial, update in carried.items()):
            return None
        return self._describe(start, period, count, carried, invariant)

    def _describe(
        self, start: int, period: int, count: int, carried: Mapping[Value, Value], invariant: Iterable[Value]
    ) -> Loop:
        iterations = [self.items[start + i * period : start + (i + 1) * period] for i in range(count)]
        twins = {
            value: twin
            for iteration in iterations
            for item, model in zip(iteration, iterations[0], strict=True)
            for value, twin in zip(item.outputs, model.outputs, strict=True)
            if self.defined[value][0] >= start
        }
        stop = start + period * count
        results = [value for item in iterations[-1] for value in item.outputs if self.last_read[value] >= stop]
        return Loop(
            start=start,
            period=period,
            count=count,
            weights=tuple(tuple(name for item in iteration for name in item.weights) for iteration in iterations),
            caches=tuple(tuple(name for item in iteration for name in item.caches) for iteration in iterations),
            carried=tuple(Carried(initial, update) for initial, update in carried.items()),
            invariant=tuple(invariant),
            results=tuple(dict.fromkeys(results)),
            twins=twins,
        )

    def _consistent(
        self,
        values: Sequence[Value],
        start: int,
        period: int,
        carried: dict[Value, Value],
        invariant: dict[Value, None],
    ) -> bool:
        """Classify what one place of the body reads in each iteration, or return False."""
        places = [self.defined.get(value) for value in values]
        if all(value == values[0] for value in values):
            invariant[values[0]] = None
            return places[0] is None or places[0][0] < start
        second = places[1]
        if second is None:
            return False
        apart = all(place == (second[0] + i * period, second[1]) for i, place in enumerate(places[1:]))
        if not apart:
            return False
        if second[0] >= start + period:  # defined in the iteration that reads it
            return places[0] == (second[0] - period, second[1])
        if second[0] < start or places[0] is None or places[0][0] >= start:
            return False
        return carried.setdefault(values[0], values[1]) == values[1]

    def _one_place(self, initial: Value, update: Value, start: int, period: int) -> bool:
        """Whether `update` can be written where `initial` lies, in every iteration."""
        written = self.defined[update][0]
        for number in range(start, start + period):
            replaced = number == written and (update, initial) in self.items[number].over
            if initial in self.reads[number] and number >= written and not replaced:
                return False
        return self.last_read[initial] < start + period


def _has_run(flags: Sequence[bool], length: int) -> bool:
    run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        if run >= length:
            return True
    return False


def _run_ends(flags: Sequence[bool]) -> list[int]:
    """For each place, the first place from there on whose flag is not set."""
    ends = [0] * len(flags)
    end = len(flags)
    for place in range(len(flags) - 1, -1, -1):
        if not flags[place]:
            end = place
        ends[place] = end
    return ends
