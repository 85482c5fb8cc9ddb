"""A program's weights on the device: copied one by one, and laid out as its kernels read them."""

from collections import deque
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.errors import ArtifactRejected
from llmc.runtime.cuda.device import Device, Place, Stage, padded
from llmc.runtime.cuda.plan import Argument, Plan
from llmc.runtime.weights_stream import WeightsStream

NO_SIZES = {"T": 0, "B": 0, "R": 0, "M": 0, "F": 0}
"""Grids of rearrangements depend on no size of a step."""

Weights = Mapping[str, npt.NDArray[Any]] | WeightsStream
"""The stored arrays by name, or the file that they are in."""


def load_weights(plan: Plan, device: Device, weights: Weights) -> dict[str, Place]:
    """Where each weight of a plan lies, in one piece of memory.

    Weights that the plan does not name are left where they are. They are gone through once, in their order, so that
    they can be larger together than the host's memory, or be computed meanwhile.

    Raises:
        ArtifactRejected: a weight is missing, or of another length, or the file of weights is damaged.
        OutOfMemory: the device has not enough memory.
    """
    lengths = weights.tensors if isinstance(weights, WeightsStream) else weights
    if missing := [name for name in plan.weights if name not in lengths]:
        raise ArtifactRejected(f"program: needs a weight {missing[0]!r} that is not there; build the artifact again")
    layout = _Layout(plan, device)
    if isinstance(weights, WeightsStream):
        _stream(layout, device, weights)
    else:
        for name, given in weights.items():
            if name in layout.places:
                array = np.ascontiguousarray(given).reshape(-1).view(np.uint8)
                device.upload(layout.target(name, array.nbytes), array)
                layout.arrived(name)
    device.synchronize()  # before the room for what is stored is given back
    return layout.places


def _stream(layout: "_Layout", device: Device, weights: WeightsStream) -> None:
    """Copy the weights from where they are read to."""
    waiting = deque((name, *span) for name, span in weights.tensors.items() if name in layout.places)
    targets = {name: layout.target(name, end - begin) for name, begin, end in waiting}
    stages: dict[int, Stage] = {id(stage): stage for stage in device.stages(weights.buffers, weights.piece_bytes)}
    with closing(weights.pieces(list(stages.values()))) as pieces:
        for buffer, first, last in pieces:
            while waiting and waiting[0][1] < last:
                name, begin, end = waiting[0]
                here, until = max(begin, first), min(end, last)
                memory, offset = targets[name]
                if until > here:
                    stages[id(buffer)].send(here - first, Place(memory, offset + here - begin), until - here)
                if end > last:
                    break
                layout.arrived(name)
                waiting.popleft()


class _Layout:
    """The memory of a plan's weights."""

    def __init__(self, plan: Plan, device: Device) -> None:
        self._device = device
        self._rearranged = {rearrangement.weight: rearrangement for rearrangement in plan.rearrangements}
        self._kernels = {kernel.name: kernel for kernel in plan.kernels}
        self._stored_bytes = dict(zip(plan.weights, plan.weight_bytes, strict=True))
        sizes = {
            name: self._rearranged[name].bytes if name in self._rearranged else size
            for name, size in self._stored_bytes.items()
        }
        memory = device.allocate(sum(padded(size) for size in sizes.values()) or 1, zeroed=False)
        self.places: dict[str, Place] = {}
        """Where each weight lies in the end."""
        offset = 0
        for name, size in sizes.items():
            self.places[name] = Place(memory, offset)
            offset += padded(size)
        largest = max((self._stored_bytes[name] for name in self._rearranged), default=0)
        self._stored = Place(device.allocate(largest, zeroed=False), 0) if largest else None

    def target(self, name: str, bytes: int) -> Place:
        """Where a weight is copied to. Raises ArtifactRejected if it is not as long as it is to be."""
        if bytes != self._stored_bytes[name]:  # a kernel would read what lies behind it
            raise ArtifactRejected(
                f"program: weight {name!r} has {bytes} bytes, expected {self._stored_bytes[name]};"
                " build the artifact again"
            )
        if name not in self._rearranged:
            return self.places[name]
        assert self._stored is not None, "the largest rearranged weight has bytes"
        return self._stored

    def arrived(self, name: str) -> None:
        """All of a weight is there, or will be before what is asked for now."""
        if name not in self._rearranged:
            return
        launch = self._rearranged[name].launch
        x, y, z = (extent.at(NO_SIZES) for extent in launch.grid)
        arguments = [self._argument(argument, self.places[name]) for argument in launch.arguments]
        # Never before its predecessor has ended: what it reads has just been copied.
        self._device.launch(self._kernels[launch.kernel], (x, y, z), arguments, pdl=False)

    def _argument(self, argument: Argument, target: Place) -> Place:
        assert argument.kind in ("source", "target") and self._stored is not None, f"it is given a {argument.kind}"
        return self._stored if argument.kind == "source" else target
