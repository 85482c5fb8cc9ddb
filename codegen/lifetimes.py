"""How long each value of a program lives, with its loops rolled up: what the memory plan is made from.

    live_buffers(items, loops, sizes, results=()) -> list[Buffer]      for llmc.codegen.plan_memory.plan
    Rolled(items, loops).position(i)         the place of item i among the regions that have code of their own
    Rolled(items, loops).twin(value)         the key of the value's buffer

Regions are numbered as they stand in the code: a loop's body once. A value of any iteration has the buffer of its twin
in the first. What every iteration reads lives to the end of the loop, and what one hands to the next has one place.
"""

from collections.abc import Iterable, Mapping, Sequence

from llmc.codegen.plan_memory import Buffer, Unit
from llmc.codegen.repeats import Item, Loop, Value


class Rolled:
    """The numbering of items and values with the loops rolled up."""

    def __init__(self, items: Sequence[Item], loops: Sequence[Loop]) -> None:
        """`loops` are disjoint and in order, as `find_loops` returns them."""
        self.length = 0
        self._positions: list[int] = []
        self._twins: dict[Value, Value] = {}
        starts = {loop.start: loop for loop in loops}
        while len(self._positions) < len(items):
            loop = starts.get(len(self._positions))
            body = list(range(self.length, self.length + (1 if loop is None else loop.period)))
            self._positions += body * (1 if loop is None else loop.count)
            self._twins.update({} if loop is None else loop.twins)
            self.length += len(body)

    def position(self, number: int) -> int:
        """The place of an item, or of the one it repeats, among those with code of their own."""
        return self._positions[number]

    def twin(self, value: Value) -> Value:
        """The value itself, or what it is in the first iteration of its loop."""
        return self._twins.get(value, value)


def live_buffers(
    items: Sequence[Item],
    loops: Sequence[Loop],
    sizes: Mapping[Value, tuple[int, Unit]],
    results: Iterable[Value] = (),
) -> list[Buffer]:
    """A buffer for each value of `sizes` that an item writes, in the order of writing.

    sizes: bytes, and for what; values that are not in it (step inputs, logits) have memory elsewhere. results: values
    read after the last item. A loop's values of later iterations have no buffer: ask `Rolled.twin` for theirs.
    """
    rolled = Rolled(items, loops)
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    over: dict[Value, Value] = {}
    for number, item in enumerate(items):
        place = rolled.position(number)
        for value in (*item.inputs, *item.outputs):
            key = rolled.twin(value)
            last[key] = max(place, last.get(key, 0))
        for value in item.outputs:
            if rolled.twin(value) == value:
                first.setdefault(value, place)
        over.update(item.over)
    for value in results:
        last[rolled.twin(value)] = rolled.length - 1
    places: dict[Value, Value] = {}
    for loop in loops:
        end = rolled.position(loop.stop - 1)
        for value in loop.invariant:
            key = rolled.twin(value)
            last[key] = max(end, last[key])
        for carried in loop.carried:
            initial = rolled.twin(carried.initial)
            places[carried.update] = places.setdefault(initial, initial)
            last[carried.update] = max(end, last[carried.update])
    return [
        Buffer(
            key=value,
            first=start,
            last=max(start, last[value]),
            size=sizes[value][0],
            unit=sizes[value][1],
            place=places.get(value),
            over=rolled.twin(over[value]) if value in over else None,
        )
        for value, start in first.items()
        if value in sizes
    ]
