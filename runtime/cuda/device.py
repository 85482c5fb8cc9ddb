"""What the runtime asks of a GPU: memory, copies, launches, products, and all that recorded once and repeated.

Everything happens in the order in which it is asked for. Copies and launches may return before they are done;
`download` and `synchronize` wait.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from llmc.runtime.cuda.plan import Kernel, Product

ALIGNMENT = 256
"""Every allocation, and every array that is carved out of one, begins at a multiple of so many bytes."""


class Memory(Protocol):
    """A piece of a device's memory. It is given back when nobody holds it any more."""

    @property
    def bytes(self) -> int:
        """Its size."""


class Place(NamedTuple):
    """Where an array begins: in a piece of memory, so many bytes from its start."""

    memory: Memory
    offset: int


Grid = tuple[int, int, int]


class Graph(Protocol):
    """Copies and launches that were recorded."""

    def replay(self) -> None:
        """Do them again, on the same memory."""


class Stage(Protocol):
    """Memory of the host that the device copies from by itself."""

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """[bytes] its content; whoever fills it waits before."""

    def send(self, begin: int, place: Place, bytes: int) -> None:
        """Copy so many of its bytes, from `begin` on, to the device. The copy may be made later."""

    def wait(self) -> None:
        """Wait until all copies from it have been made. Any thread may."""


class Device(Protocol):
    """A GPU with the kernels of one program on it. Not for use by several threads at a time."""

    def allocate(self, bytes: int, *, zeroed: bool = True) -> Memory:
        """Memory of at least 1 byte, aligned to `ALIGNMENT`; its content is arbitrary if not `zeroed`.

        Raises OutOfMemory.
        """

    def upload(self, place: Place, array: npt.NDArray[Any]) -> None:
        """Copy a contiguous array to the device; it may change as soon as this returns."""

    def stages(self, count: int, bytes: int) -> Sequence[Stage]:
        """So many stages of so many bytes. Raises OutOfMemory."""

    def download(self, place: Place, array: npt.NDArray[Any]) -> None:
        """Fill a contiguous array from the device."""

    def copy(self, source: Place, target: Place, bytes: int) -> None:
        """Copy within the device; the two ranges do not overlap."""

    def launch(self, kernel: Kernel, grid: Grid, arguments: Sequence[Place | int], pdl: bool) -> None:
        """Run a kernel over a grid of programs, none of whose sides is 0.

        Args:
            kernel: one of the program's.
            grid: programs along x, y and z.
            arguments: for each of the kernel's parameters, a place for a pointer and a number for a size.
            pdl: whether it may begin before its predecessor has ended.
        """

    @property
    def multiplies(self) -> bool:
        """Whether it has a library that computes products."""

    def multiply(self, product: Product, rows: int, weight: Place, inputs: Place, sums: Place) -> None:
        """Compute a product over so many rows, of matrices that begin at the given places. It must have a library."""

    def synchronize(self) -> None:
        """Wait until everything is done."""

    def capture(self, record: Callable[[], None]) -> Graph:
        """Record the launches, products and copies within the device that `record` asks for, instead of doing them."""


def padded(bytes: int) -> int:
    """`bytes` rounded up so that what follows is aligned."""
    return bytes + -bytes % ALIGNMENT
