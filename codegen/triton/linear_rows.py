"""Which rows of its weight a program of a linear multiplies: one set of rows, or two whose results meet.

The results of two rows meet in a gated activation (gate and up) and in RoPE (the two elements of a rotated pair).
"""

from dataclasses import dataclass

from llmc.codegen.regions import Linear, Rotation
from llmc.codegen.triton.kernel import KernelText


@dataclass(frozen=True)
class Owned:
    """What programs own: `count` indices, each with as many rows of the weight as there are `sets`."""

    count: int
    sets: int
    half: int = 0
    """Pairs of a head, where RoPE makes the sets; otherwise 0."""
    size: int = 0
    """Elements of a head."""
    rotated: int = 0
    interleaved: bool = False

    def define(self, kernel: KernelText, index: str) -> None:
        """Add lines that set `row_0` and, of two sets, `row_1` to the rows of indices."""
        if self.sets == 1:
            return
        if not self.half:
            kernel.add(f"row_1 = {index} + {self.count}  # the other half, which the first one gates")
            return
        kernel.add(f"pair = {index} % {self.half}")
        first, second = self.elements("pair")
        kernel.add(f"row_0 = {index} // {self.half} * {self.size} + {first}")
        kernel.add(f"row_1 = {index} // {self.half} * {self.size} + {second}")

    def rows(self, index: str) -> tuple[str, ...]:
        """The names of the rows."""
        return (index,) if self.sets == 1 else (index if not self.half else "row_0", "row_1")

    def first(self, index: str) -> tuple[str, ...]:
        """The rows of one index, of which `index` is an expression."""
        if self.sets == 1:
            return (f"({index})",)
        if not self.half:
            return f"({index})", f"({index} + {self.count})"
        start, (one, two) = f"{index} // {self.half} * {self.size}", self.elements(f"({index}) % {self.half}")
        return f"({start} + {one})", f"({start} + {two})"

    def elements(self, pair: str) -> tuple[str, str]:
        """The two elements of a pair within its head; those that are not rotated are paired as well."""
        if self.interleaved:
            return f"2 * {pair}", f"(2 * {pair} + 1)"
        if self.rotated == self.size:
            return pair, f"({pair} + {self.half})"
        turned = self.rotated // 2
        return (
            f"tl.where({pair} < {turned}, {pair}, {pair} + {turned})",
            f"tl.where({pair} < {turned}, {pair} + {turned}, {pair} + {self.half})",
        )


def owned(region: Linear, *, finished: bool) -> Owned:
    """What programs own; finished: whether heads are finished in the same kernel."""
    if region.gate:
        return Owned(region.n // 2, 2)
    turn = rotation(region)
    if not region.parts or not finished or turn is None:
        return Owned(region.n, 1)
    size = region.head_size
    return Owned(region.n // 2, 2, size // 2, size, turn.size, turn.interleaved)


def rotation(region: Linear) -> Rotation | None:
    """The first rotation of a region's heads."""
    return next((part.rotation for part in region.parts if part.rotation is not None), None)


@dataclass(frozen=True)
class Run:
    """Heads of one part that follow one another, again in each period of units: `head` of unit `first` of the first
    period, `step` more in each later one."""

    part: int
    first: int
    last: int
    """The unit after the run."""
    head: int
    step: int


def runs(head_of: tuple[tuple[int, int], ...]) -> tuple[int, tuple[Run, ...]]:
    """The least period of units in which parts repeat, and the runs of the first period."""
    period = next(size for size in range(1, len(head_of) + 1) if _repeats(head_of, size))
    found: list[Run] = []
    for unit, (part, head) in enumerate(head_of[:period]):
        step = head_of[unit + period][1] - head if unit + period < len(head_of) else 0
        last = found[-1] if found else None
        if last is not None and last.part == part and last.step == step and head == last.head + unit - last.first:
            found[-1] = Run(part, last.first, unit + 1, last.head, step)
        else:
            found.append(Run(part, unit, unit + 1, head, step))
    return period, tuple(found)


def _repeats(head_of: tuple[tuple[int, int], ...], period: int) -> bool:
    if len(head_of) % period:
        return False
    steps = [head_of[unit + period][1] - head_of[unit][1] for unit in range(len(head_of) - period)]
    same = all(head_of[unit][0] == head_of[unit + period][0] for unit in range(len(head_of) - period))
    return same and all(steps[unit] == steps[unit % period] for unit in range(len(steps)))
