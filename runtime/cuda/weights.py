"""A program's weights on the device: copied one by one, and laid out as its kernels read them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.errors import ArtifactRejected
from llmc.runtime.cuda.device import Device, Place, padded
from llmc.runtime.cuda.plan import Argument, Plan, Rearrangement

NO_SIZES = {"T": 0, "B": 0, "R": 0, "M": 0, "F": 0}
"""Grids of rearrangements depend on no size of a step."""


def load_weights(plan: Plan, device: Device, weights: Mapping[str, npt.NDArray[Any]]) -> dict[str, Place]:
    """Where each weight of a plan lies, in one piece of memory.

    `weights` are the stored arrays by name; those that the plan does not name are left where they are. They are gone
    through once, in their order, so that they can be larger together than the host's memory, or be computed meanwhile.

    Raises:
        ArtifactRejected: a weight is missing, or of another length.
        OutOfMemory: the device has not enough memory.
    """
    rearranged = {rearrangement.weight: rearrangement for rearrangement in plan.rearrangements}
    stored_bytes = dict(zip(plan.weights, plan.weight_bytes, strict=True))
    if missing := [name for name in plan.weights if name not in weights]:
        raise ArtifactRejected(f"program: needs a weight {missing[0]!r} that is not there; build the artifact again")
    sizes = {name: rearranged[name].bytes if name in rearranged else size for name, size in stored_bytes.items()}
    memory = device.allocate(sum(padded(size) for size in sizes.values()) or 1, zeroed=False)
    places, offset = dict[str, Place](), 0
    for name, size in sizes.items():
        places[name] = Place(memory, offset)
        offset += padded(size)
    largest = max((size for name, size in stored_bytes.items() if name in rearranged), default=0)
    stored = Place(device.allocate(largest, zeroed=False), 0) if largest else None
    for name, given in weights.items():
        if (place := places.get(name)) is None:
            continue
        array = np.ascontiguousarray(given).reshape(-1).view(np.uint8)
        if array.nbytes != stored_bytes[name]:  # a kernel would read what lies behind it
            raise ArtifactRejected(
                f"program: weight {name!r} has {array.nbytes} bytes, expected {stored_bytes[name]};"
                " build the artifact again"
            )
        if name in rearranged:
            assert stored is not None, "the largest rearranged weight has bytes"
            device.upload(stored, array)
            _rearrange(plan, device, rearranged[name], stored, place)
        else:
            device.upload(place, array)
    device.synchronize()  # before `stored` is given back
    return places


def _rearrange(plan: Plan, device: Device, rearrangement: Rearrangement, source: Place, target: Place) -> None:
    kernels = {kernel.name: kernel for kernel in plan.kernels}
    launch = rearrangement.launch
    x, y, z = (extent.at(NO_SIZES) for extent in launch.grid)
    arguments = [_argument(argument, source, target) for argument in launch.arguments]
    # Never before its predecessor has ended: what it reads has just been copied.
    device.launch(kernels[launch.kernel], (x, y, z), arguments, pdl=False)


def _argument(argument: Argument, source: Place, target: Place) -> Place:
    assert argument.kind in ("source", "target"), f"a rearrangement is given a {argument.kind}"
    return source if argument.kind == "source" else target
