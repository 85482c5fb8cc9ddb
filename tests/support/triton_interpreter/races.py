"""Which program wrote and read which element, and whether something orders two accesses to the same one.

On the GPU the programs of a launch run in any order and at the same time. Two programs may touch one element, one of
them writing, only if an atomic operation of the first releases what it wrote and a later one of the second, at the
same address, acquires it. Within a program the threads are ordered by barriers: `tl.debug_barrier`, and those that a
releasing or acquiring atomic operation brings along.

The run of a program is cut into segments by its barriers. Each segment has a number, and each program a set of the
segments that happened before its current one, kept as the bits of an int.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from support.triton_interpreter.memory import Access, Argument

Segments = NDArray[np.int32]
NOBODY = 0
"""In place of a segment. Nobody is 0, so that the history of memory that nothing touches takes no memory. A negative
number -n in place of a segment means those of the n-th group."""


class RaceError(AssertionError):
    """The result of a launch depends on the order in which its programs, or the threads of one, happen to run."""


@dataclass(frozen=True)
class Region:
    """Memory whose history is kept together: the bytes of an argument, or of arguments that overlap."""

    start: int
    size: int
    granule: int
    """The unit of the history in bytes: divides the elements of its arguments and the distances between them."""


class Shadow:
    """What happened to each granule of a region."""

    def __init__(self, region: Region) -> None:
        self.start = region.start
        self.granule = region.granule
        count = -(-region.size // region.granule)
        self.writer: Segments = np.zeros(count, np.int32)
        self.reader: Segments = np.zeros(count, np.int32)
        self.atomic = np.zeros(count, np.bool_)
        """Whether the last write was an atomic operation."""
        self.shared = np.zeros(count, np.bool_)
        """Whether two programs wrote it."""

    def granules(self, argument: Argument, size: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The granules of elements of `size` bytes of an argument."""
        if size < self.granule:
            self._split(self.granule // size)
        first = (argument.start - self.start) // self.granule
        each = size // self.granule
        if each == 1:
            return index if first == 0 else index + first
        flat = index.reshape(-1, 1) * each + first
        return (flat + np.arange(each)).reshape(-1)

    def _split(self, parts: int) -> None:
        self.granule //= parts
        self.writer, self.reader = np.repeat(self.writer, parts), np.repeat(self.reader, parts)
        self.atomic, self.shared = np.repeat(self.atomic, parts), np.repeat(self.shared, parts)


class Races:
    """The history of one launch.

    `place` describes the running program for messages. `unordered` names arguments whose races are meant, such as a
    flag that several programs set to the same value.
    """

    def __init__(
        self, place: Callable[[], str], unordered: Collection[str] = (), written: Collection[str] = ()
    ) -> None:
        self._place = place
        self._unordered = frozenset(unordered)
        self.written: set[str] = set(written)
        """Names of arguments that programs of this kernel write, as far as known."""
        self._shadows: dict[Region, Shadow] = {}
        self._owners: list[tuple[int, ...]] = [()]
        """The program of each segment; segment 0 is what was before."""
        self._known = 1
        self._open = NOBODY
        self._first = 1
        """The first segment of the running program."""
        self._released: dict[int, int] = {}
        """By address, the segments that an acquiring operation there learns of."""
        self._pending: list[tuple[Access, int]] = []
        self._groups: list[int] = [0]
        """Segments that read the same elements, as the bits of an int."""
        self._numbers: dict[int, int] = {}
        """Of each group its number."""
        self._programs = 0

    def begin(self, program: tuple[int, ...]) -> None:
        """A program starts."""
        if self._programs == 1:
            self._pending.clear()  # what the first program did not write is taken as only read
        self._programs += 1
        self._program = program
        self._known = 1
        self._first = len(self._owners)
        self._segment()

    def _segment(self) -> int:
        self._open = len(self._owners)
        self._owners.append(self._program)
        return self._open

    def barrier(self) -> None:
        """What the program did so far happened before what it does from here on."""
        self._known |= 1 << self._open
        self._segment()

    def shadow(self, argument: Argument) -> Shadow | None:
        """The history of an argument's region; None if nothing was written there."""
        return self._shadows.get(argument.region)

    def _written_shadow(self, argument: Argument) -> Shadow:
        found = self._shadows.get(argument.region)
        if found is None:
            found = self._shadows[argument.region] = Shadow(argument.region)
            pending, self._pending = self._pending, []
            for access, segment in pending:
                if access.argument.region == argument.region:
                    granules = found.granules(access.argument, access.dtype.itemsize, access.index)
                    found.reader[granules] = segment
                else:
                    self._pending.append((access, segment))
        return found

    def read(self, access: Access) -> None:
        """The running program reads elements.

        Raises:
            RaceError: another program wrote one, or this one did with no barrier since, and nothing orders the two.
        """
        argument = access.argument
        shadow = self._shadows.get(argument.region)
        if shadow is None:
            if argument.name in self.written:
                shadow = self._written_shadow(argument)
            else:
                if self._programs == 1:
                    self._pending.append((access, self._open))
                return
        granules = shadow.granules(argument, access.dtype.itemsize, access.index)
        self._ordered(access, "reads", shadow.writer[granules], "wrote", own_too=True)
        readers = shadow.reader[granules]
        now = np.full_like(readers, self._open)
        others = readers[(readers != NOBODY) & (readers < self._first)]
        for reader in np.unique(others).tolist():
            now[readers == reader] = self._joined(reader)
        shadow.reader[granules] = now

    def _joined(self, reader: int) -> int:
        """The group of those that read an element before and the running segment."""
        group = self._bits(reader) | 1 << self._open
        if group not in self._numbers:
            self._numbers[group] = len(self._groups)
            self._groups.append(group)
        return -self._numbers[group]

    def _bits(self, reader: int) -> int:
        return self._groups[-reader] if reader < 0 else 1 << reader

    def write(self, access: Access) -> None:
        """The running program stores to elements.

        Raises:
            RaceError: another program wrote or read one and nothing orders the two.
        """
        argument = access.argument
        self.written.add(argument.name)
        shadow = self._written_shadow(argument)
        granules = shadow.granules(argument, access.dtype.itemsize, access.index)
        writers = shadow.writer[granules]
        others = (writers > NOBODY) & (writers < self._first)
        if others.any():
            shadow.shared[granules] |= others
            self._ordered(access, "writes", writers, "wrote", own_too=False)
        self._ordered(access, "writes", shadow.reader[granules], "read", own_too=False)
        shadow.writer[granules] = self._open
        shadow.reader[granules] = NOBODY
        shadow.atomic[granules] = False

    def atomic(self, access: Access, release: bool, acquire: bool) -> None:
        """The running program does an atomic operation on elements, which needs no order among such operations."""
        argument = access.argument
        self.written.add(argument.name)
        shadow = self._written_shadow(argument)
        granules = shadow.granules(argument, access.dtype.itemsize, access.index)
        if release:
            self.barrier()
        addresses = (access.index.reshape(-1) * access.dtype.itemsize + argument.start).tolist()
        if acquire:
            for address in addresses:
                self._known |= self._released.get(address, 0)
        plain = ~shadow.atomic[granules]
        self._ordered(access, "updates", np.where(plain, shadow.writer[granules], NOBODY), "wrote", own_too=False)
        self._ordered(access, "updates", shadow.reader[granules], "read", own_too=False)
        # The operation itself is a segment: what it did is ordered where what came before it in the program is not.
        before, mine = self._open, self._segment()
        self._open = before
        self._known |= 1 << mine
        if release:
            for address in addresses:
                self._released[address] = self._released.get(address, 0) | self._known
        if acquire:
            self.barrier()
        shadow.writer[granules] = mine
        shadow.atomic[granules] = True

    def _ordered(self, access: Access, does: str, segments: Segments, did: str, own_too: bool) -> None:
        """Check that what other programs did to the elements of an access happened before it."""
        argument = access.argument
        if argument.name in self._unordered:
            return
        suspects = (segments != NOBODY) & (segments < self._first)
        if own_too:
            suspects |= segments == self._open
        if not suspects.any():
            return
        for segment in np.unique(segments[suspects]).tolist():
            unknown = self._bits(segment) & ~self._known & ((1 << self._first) - 1)
            if segment != self._open and not unknown:
                continue
            which = int(np.flatnonzero(segments.reshape(-1) == segment)[0])
            each = max(1, segments.size // max(1, access.index.size))
            element = int(access.index.reshape(-1)[which // each])
            if segment == self._open:
                raise RaceError(
                    f"{self._place()}: {does} element {element} of {argument}, which it {did} with no barrier between; "
                    f"another thread may run first: put tl.debug_barrier() between the two"
                )
            other = f"program {self._owners[unknown.bit_length() - 1]}"
            raise RaceError(
                f"{self._place()}: {does} element {element} of {argument}, which {other} {did} in the same launch; "
                f"nothing orders the two"
            )
