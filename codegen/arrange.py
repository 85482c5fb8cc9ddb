"""An order of the regions in which the layers repeat: what they share is put before them.

    arrange(items, results=(), varying=("tokens",)) -> tuple[list[int], tuple[Loop, ...]]

The numbers of the items in their new order, and the loops of the items in that order. Tables of positions, masks and
the like stand in a graph where the first layer reads them, and make that layer unlike the others.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from llmc.codegen.repeats import Item, Loop, Value, find_loops


def arrange(
    items: Sequence[Item], results: Iterable[Value] = (), varying: Iterable[Value] = ("tokens",)
) -> tuple[list[int], tuple[Loop, ...]]:
    """The order that saves most items, of three: as given, or with what does not depend on `varying` values (nor on
    caches) put first, either all of it or only what is read across half of the items. `results` as in `find_loops`.
    """
    wanted = tuple(results)
    best: tuple[list[int], tuple[Loop, ...]] = ([], ())
    saved = -1
    for order in _orders(items, frozenset(varying)):
        loops = find_loops([items[number] for number in order], wanted)
        if sum(loop.saved for loop in loops) > saved:
            saved = sum(loop.saved for loop in loops)
            best = (order, loops)
    return best


def _orders(items: Sequence[Item], varying: frozenset[Value]) -> Iterator[list[int]]:
    yield list(range(len(items)))
    steady = _steady(items, varying)
    if steady:
        yield _first(items, _shared(items, steady))
        yield _first(items, steady)


def _steady(items: Sequence[Item], varying: frozenset[Value]) -> set[int]:
    """The items that read no varying value, directly or through others, and no cache; all that they write, they alone
    write.
    """
    writers = Counter(value for item in items for value in item.outputs)
    moving = {*varying, *(value for value, count in writers.items() if count > 1)}
    steady = set()
    for number, item in enumerate(items):
        if item.caches or any(value in moving for value in item.inputs + item.outputs):
            moving.update(item.outputs)
        else:
            steady.add(number)
    return steady


def _shared(items: Sequence[Item], steady: set[int]) -> set[int]:
    """Of the steady items, those with a value that is read half of the program later, and what those read."""
    defined: dict[Value, int] = {}
    last_read: dict[Value, int] = {}
    for number, item in enumerate(items):
        for value in item.outputs:
            defined.setdefault(value, number)
        for value in item.inputs + item.outputs:
            last_read[value] = number
    shared: set[int] = set()
    pending = [
        number
        for number in steady
        if any(2 * (last_read[value] - number) >= len(items) for value in items[number].outputs)
    ]
    while pending:
        number = pending.pop()
        if number not in shared:
            shared.add(number)
            pending += [defined[value] for value in items[number].inputs if value in defined]
    return shared


def _first(items: Sequence[Item], chosen: set[int]) -> list[int]:
    return [*sorted(chosen), *(number for number in range(len(items)) if number not in chosen)]
