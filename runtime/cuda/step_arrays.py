"""The integer arrays of a step on the device: filled on the host, copied at once."""

from collections.abc import Collection, Mapping
from math import prod

import numpy as np
import numpy.typing as npt

from llmc.runtime.cuda.device import ALIGNMENT, Device, Memory, Place

Shape = tuple[int, ...]


class StepArrays:
    """Named int64 arrays in one piece of memory, with a copy on the host."""

    def __init__(self, device: Device) -> None:
        """No arrays yet."""
        self._device = device
        self._host: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._memory: Memory | None = None
        self._used = 0
        self._offsets: dict[str, int] = {}
        self.arrays: dict[str, npt.NDArray[np.int64]] = {}
        """The host's copy of each, to be written before `upload`."""

    def lay_out(self, shapes: Mapping[str, Shape], apart: Collection[str] = ()) -> None:
        """Make room for these arrays instead of those that were there; their content is arbitrary.

        Those that are `apart` are copied only by name. The memory moves only if it grows. Raises OutOfMemory.
        """
        per_line = ALIGNMENT // 8
        offsets, used, together = dict[str, int](), 0, 0
        for name, shape in sorted(shapes.items(), key=lambda item: item[0] in apart):
            offsets[name] = used
            used += -(-prod(shape) // per_line) * per_line
            together = together if name in apart else used
        if self._memory is None or used > len(self._host):
            self._memory = None  # give it back before more is asked for
            size = 1 << max(used - 1, per_line - 1).bit_length()
            self._memory = self._device.allocate(8 * size)
            self._host = np.zeros(size, np.int64)
        self._offsets, self._used = offsets, together
        self.arrays = {
            name: self._host[offsets[name] : offsets[name] + prod(shape)].reshape(shape)
            for name, shape in shapes.items()
        }

    def upload(self, *names: str) -> None:
        """Copy some arrays to the device, or all at once that are not apart if none is named."""
        if not names:
            self._device.upload(Place(self._held(), 0), self._host[: self._used])
        for name in names:
            self._device.upload(self.place(name), self.arrays[name])

    def download(self, *names: str) -> None:
        """Copy some arrays back, one by one."""
        for name in names:
            self._device.download(self.place(name), self.arrays[name])

    def place(self, name: str) -> Place:
        """Where an array lies on the device."""
        return Place(self._held(), 8 * self._offsets[name])

    def _held(self) -> Memory:
        assert self._memory is not None, "lay_out() comes first"
        return self._memory
