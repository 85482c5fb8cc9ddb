"""A device without a GPU: the text of a generated module run by Triton's interpreter, in memory of this process.

Memory that was not asked for zeroed is filled with bytes that make every float a NaN, so that a kernel that reads what
nobody wrote changes its result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from support.triton_interpreter import launch, load_kernels

from llmc.runtime.cuda.device import Grid, Place
from llmc.runtime.cuda.plan import NUMBER_BYTES, Kernel, Product

TYPES = {
    "*fp32": torch.float32,
    "*fp16": torch.float16,
    "*bf16": torch.bfloat16,
    "*fp8e4nv": torch.float8_e4m3fn,
    "*fp64": torch.float64,
    "*i64": torch.int64,
    "*i32": torch.int32,
    "*u32": torch.uint32,
    "*i16": torch.int16,
    "*u8": torch.uint8,
    "*i8": torch.int8,
}
"""What pointers of Triton's types point at."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes of this process in place of a GPU's."""

    content: torch.Tensor
    """[bytes] uint8."""

    @property
    def bytes(self) -> int:
        return self.content.numel()

    def numpy(self, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """[size] the bytes from `offset` on."""
        assert 0 <= offset <= offset + size <= self.bytes, f"{size} bytes at {offset} of {self.bytes}"
        return self.content.numpy()[offset : offset + size]


@dataclass(frozen=True)
class HostStage:
    """What copies are made from, at once."""

    bytes: npt.NDArray[np.uint8]

    def send(self, begin: int, place: Place, bytes: int) -> None:
        _bytes(place, bytes)[...] = self.bytes[begin : begin + bytes]

    def wait(self) -> None:
        """There is nothing to wait for."""


@dataclass
class Recording:
    """Launches and copies that are made again and again."""

    actions: list[Callable[[], None]] = field(default_factory=list)

    def replay(self) -> None:
        for action in self.actions:
            action()


class InterpretedDevice:
    """Implements `llmc.runtime.cuda.device.Device`. `launches` counts what each kernel was launched, `products` by what
    they multiply."""

    def __init__(self, text: str, *, multiplies: bool = False) -> None:
        """`text` is the module of the kernels; multiplies: whether there is a library of products."""
        self.multiplies = multiplies
        self.products: dict[str, int] = {}
        self._module = load_kernels(text)
        self._recording: Recording | None = None
        self.launches: dict[str, int] = {}
        self.replays = 0

    def allocate(self, bytes: int, *, zeroed: bool = True) -> HostMemory:
        assert bytes > 0 and self._recording is None
        return HostMemory(torch.full((bytes,), 0 if zeroed else 255, dtype=torch.uint8))

    def upload(self, place: Place, array: npt.NDArray[Any]) -> None:
        assert self._recording is None and array.flags.c_contiguous
        _bytes(place, array.nbytes)[...] = array.reshape(-1).view(np.uint8)

    def stages(self, count: int, bytes: int) -> list[HostStage]:
        return [HostStage(np.full(bytes, 255, np.uint8)) for _ in range(count)]

    def download(self, place: Place, array: npt.NDArray[Any]) -> None:
        assert self._recording is None and array.flags.c_contiguous
        array.reshape(-1).view(np.uint8)[...] = _bytes(place, array.nbytes)

    def copy(self, source: Place, target: Place, bytes: int) -> None:
        def action() -> None:
            _bytes(target, bytes)[...] = _bytes(source, bytes)

        self._do(action)

    def launch(self, kernel: Kernel, grid: Grid, arguments: Sequence[Place | int], pdl: bool) -> None:
        assert len(arguments) == len(kernel.parameters), kernel.name
        assert min(grid) > 0, f"{kernel.name}: an empty grid {grid}"
        given = [_given(argument, type) for argument, (_, type) in zip(arguments, kernel.parameters, strict=True)]

        def action() -> None:
            self.launches[kernel.name] = self.launches.get(kernel.name, 0) + 1
            launch(getattr(self._module, kernel.name), grid, *given)

        self._do(action)

    def multiply(self, product: Product, rows: int, weight: Place, inputs: Place, sums: Place) -> None:
        assert self.multiplies and rows > 0

        def action() -> None:
            self.products[product.dtype] = self.products.get(product.dtype, 0) + 1
            left, right = _matrix(inputs, product, rows), _matrix(weight, product, product.n)
            found = _bytes(sums, 4 * ((rows - 1) * product.stride + product.n)).view(np.float32)
            for row, values in enumerate(left @ right.T):
                found[row * product.stride :][: product.n] = values

        self._do(action)

    def synchronize(self) -> None:
        assert self._recording is None

    def capture(self, record: Callable[[], None]) -> "Replayed":
        self._recording = recording = Recording()
        try:
            record()
        finally:
            self._recording = None
        return Replayed(self, recording)

    def _do(self, action: Callable[[], None]) -> None:
        if self._recording is not None:
            self._recording.actions.append(action)
        else:
            action()


@dataclass(frozen=True)
class Replayed:
    """A recording that counts its replays."""

    device: InterpretedDevice
    recording: Recording

    def replay(self) -> None:
        self.device.replays += 1
        self.recording.replay()


def _bytes(place: Place, size: int) -> npt.NDArray[np.uint8]:
    assert isinstance(place.memory, HostMemory)
    return place.memory.numpy(place.offset, size)


def _matrix(place: Place, product: Product, rows: int) -> npt.NDArray[np.float32]:
    """[rows, k] as fp32, which holds both kinds of 16 bits."""
    content = _bytes(place, rows * product.k * NUMBER_BYTES[product.dtype])
    if product.dtype == "bf16":
        return (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(rows, product.k)
    return content.view(np.float16 if product.dtype == "f16" else np.float32).astype(np.float32).reshape(rows, -1)


def _given(argument: Place | int, type: str) -> torch.Tensor | int:
    if isinstance(argument, int):
        assert not type.startswith("*"), f"a number for a parameter of type {type}"
        return argument
    assert isinstance(argument.memory, HostMemory)
    element = TYPES[type]
    rest = argument.memory.content[argument.offset :]
    whole = rest.numel() // element.itemsize * element.itemsize
    return rest[:whole].view(element)
