"""A GPU through NVIDIA's driver, with the kernels of one program on it: `llmc.runtime.cuda.device.Device` for real."""

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_int, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.errors import DeviceFailed, OutOfMemory
from llmc.runtime.cuda.cublas import NO_CUBLAS, FoundCublas
from llmc.runtime.cuda.cuda_context import CudaContext, CudaEvent
from llmc.runtime.cuda.device import Grid, Place
from llmc.runtime.cuda.driver import (
    CAPTURE_RELAXED,
    JIT_ERROR_LOG,
    JIT_ERROR_LOG_BYTES,
    MAX_DYNAMIC_SHARED_BYTES,
    MORE_MEMORY,
    NON_BLOCKING_STREAM,
    PDL_VERSION,
    PROGRAMMATIC_STREAM_SERIALIZATION,
    DevicePointer,
    Driver,
    Gpu,
    Handle,
    LaunchAttribute,
    LaunchConfig,
)
from llmc.runtime.cuda.multiplier import WORKSPACE_BYTES, Multiplier
from llmc.runtime.cuda.plan import Kernel, Product

STAGE_BYTES = 8 << 20
"""Copies pass through pinned memory in pieces of this size: one is filled while the other travels."""
PLAIN_SHARED_BYTES = 48 << 10
"""Shared memory that a block gets without asking."""
_LOG_BYTES = 8192


@dataclass(frozen=True)
class Image:
    """The code of one kernel."""

    content: bytes
    """A cubin, or the text of PTX."""
    symbol: str
    shared: int
    """Bytes of shared memory."""
    threads: int
    """Of a block."""


class CudaMemory:
    """Memory of a GPU, given back when nobody holds it."""

    def __init__(self, pointer: int, bytes: int) -> None:
        """Callers use `CudaDevice.allocate`."""
        self.pointer = pointer
        self.bytes = bytes


class CudaGraph:
    """Launches recorded by a device, on which they are replayed."""

    def __init__(self, context: CudaContext, executable: Handle, stream: Handle) -> None:
        """Callers use `CudaDevice.capture`."""
        self._context, self._executable, self._stream = context, executable, stream

    def replay(self) -> None:
        """Do them again."""
        self._context.call("cuGraphLaunch", self._executable, self._stream)


class _Function:
    """A kernel that has been loaded, with what a launch of it passes to the driver."""

    def __init__(self, handle: Handle, image: Image, stream: Handle) -> None:
        self.handle = handle
        self.values = (c_uint64 * 0)()
        self.pointers = (c_void_p * 0)()
        self.attribute = LaunchAttribute(id=PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
        self.config = LaunchConfig(
            block_x=image.threads, block_y=1, block_z=1, shared_bytes=image.shared, stream=stream
        )
        self.config.attributes = ctypes.pointer(self.attribute)

    def make_room(self, parameters: int) -> None:
        """Set aside the parameters that the kernel declares, and the two that the compiler adds, which are null."""
        if len(self.values) != parameters + 2:
            self.values = (c_uint64 * (parameters + 2))()
            begin = ctypes.addressof(self.values)
            self.pointers = (c_void_p * len(self.values))(*(begin + 8 * place for place in range(len(self.values))))


class _Stage:
    """Pinned memory of the host, and when the copies from it have been made."""

    def __init__(self, context: CudaContext, stream: Handle, bytes: int) -> None:
        pointer = context.make("cuMemAllocHost_v2", bytes)
        self.pointer = pointer.value or 0
        content = (ctypes.c_ubyte * bytes).from_address(self.pointer)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(memoryview(content), np.uint8)
        context.when_dropped(self, "cuMemFreeHost", pointer)
        self._context, self._stream, self._copied = context, stream, CudaEvent(context)

    def send(self, begin: int, place: Place, bytes: int) -> None:
        """Copy so many bytes, from `begin` on, to the device."""
        source, target = self.pointer + begin, _pointer(place)
        self._context.call("cuMemcpyHtoDAsync_v2", target, source, bytes, self._stream)
        self._copied.record(self._stream)

    def wait(self) -> None:
        """Wait until all copies from it have been made."""
        self._copied.wait()


class CudaDevice:
    """One GPU, a stream on it, the kernels of a program, and cuBLAS where it was found."""

    def __init__(self, driver: Driver, gpu: Gpu, images: Mapping[str, Image], cublas: FoundCublas = NO_CUBLAS) -> None:
        """Load the kernels `images`, by name. Raises DeviceFailed if one does not load, and OutOfMemory.

        A library that cannot be used is done without, and `products` says so, unless it was asked for by name.
        """
        self.gpu = gpu
        self._context = CudaContext(driver, gpu)
        self._call = self._context.call
        self._stream = self._context.make("cuStreamCreate", NON_BLOCKING_STREAM)
        self._context.when_dropped(self, "cuStreamDestroy_v2", self._stream)
        self._stages = self.stages(2, STAGE_BYTES)
        self._pdl = driver.version >= PDL_VERSION
        self._functions = {name: self._load(name, image) for name, image in images.items()}
        self.products = cublas.says
        """Which library computes products, or why none does."""
        self._multiplier = self._begin_products(cublas)

    def allocate(self, bytes: int, *, zeroed: bool = True) -> CudaMemory:
        """Memory of at least 1 byte, aligned to 256. Raises OutOfMemory."""
        pointer = DevicePointer()
        try:
            self._call("cuMemAlloc_v2", ctypes.byref(pointer), bytes)
        except OutOfMemory:
            raise OutOfMemory(f"{bytes} bytes of memory on the GPU, {self._free()} are free; {MORE_MEMORY}") from None
        memory = CudaMemory(pointer.value, bytes)
        self._context.when_dropped(memory, "cuMemFree_v2", pointer)
        if zeroed:
            self._call("cuMemsetD8Async", pointer, 0, bytes, self._stream)
        return memory

    def upload(self, place: Place, array: npt.NDArray[Any]) -> None:
        """Copy a contiguous array to the device; it may change as soon as this returns."""
        content = array.reshape(-1).view(np.uint8)
        for begin in range(0, content.size, STAGE_BYTES):
            stage = self._stages[0]
            self._stages.reverse()
            piece = content[begin : begin + STAGE_BYTES]
            stage.wait()
            stage.bytes[: piece.size] = piece
            stage.send(0, Place(place.memory, place.offset + begin), piece.size)

    def stages(self, count: int, bytes: int) -> list[_Stage]:
        """Pinned memory: so many stages of so many bytes. Raises OutOfMemory."""
        return [_Stage(self._context, self._stream, bytes) for _ in range(count)]

    def download(self, place: Place, array: npt.NDArray[Any]) -> None:
        """Fill a contiguous array from the device."""
        content = array.reshape(-1).view(np.uint8)
        source = _pointer(place)
        stage = self._stages[0]
        for begin in range(0, content.size, STAGE_BYTES):
            piece = content[begin : begin + STAGE_BYTES]
            self._call("cuMemcpyDtoHAsync_v2", stage.pointer, source + begin, piece.size, self._stream)
            self.synchronize()
            piece[...] = stage.bytes[: piece.size]

    def copy(self, source: Place, target: Place, bytes: int) -> None:
        """Copy within the device."""
        self._call("cuMemcpyDtoDAsync_v2", _pointer(target), _pointer(source), bytes, self._stream)

    def launch(self, kernel: Kernel, grid: Grid, arguments: Sequence[Place | int], pdl: bool) -> None:
        """Run a kernel over a grid. Raises DeviceFailed."""
        function = self._functions[kernel.name]
        function.make_room(len(arguments))
        for place, argument in enumerate(arguments):
            function.values[place] = argument if isinstance(argument, int) else _pointer(argument)
        config = function.config
        config.grid_x, config.grid_y, config.grid_z = grid
        config.attribute_count = 1 if pdl and self._pdl else 0
        try:
            self._call("cuLaunchKernelEx", ctypes.byref(config), function.handle, function.pointers, None)
        except DeviceFailed as error:
            raise DeviceFailed(f"{kernel.name} over {grid}: {error}") from None

    @property
    def multiplies(self) -> bool:
        """Whether it has a library that computes products."""
        return self._multiplier is not None

    def multiply(self, product: Product, rows: int, weight: Place, inputs: Place, sums: Place) -> None:
        """Compute a product over so many rows. Raises DeviceFailed, and OutOfMemory."""
        assert self._multiplier is not None, "only programs of devices that multiply have products"
        self._multiplier.multiply(
            _pointer(weight), _pointer(inputs), _pointer(sums), dtype=product.dtype, rows=rows,
            n=product.n, k=product.k, stride=product.stride,
        )  # fmt: skip

    def synchronize(self) -> None:
        """Wait until everything is done. Raises DeviceFailed if a kernel failed."""
        self._call("cuStreamSynchronize", self._stream)

    def capture(self, record: Callable[[], None]) -> CudaGraph:
        """Record the launches, products and copies within the device that `record` asks for."""
        self._call("cuStreamBeginCapture_v2", self._stream, CAPTURE_RELAXED)
        try:
            record()
        except BaseException:
            with contextlib.suppress(DeviceFailed):  # it says once more that something failed
                self._call("cuGraphDestroy", self._end_capture())
            raise
        graph = self._end_capture()
        try:
            executable = self._context.make("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        made = CudaGraph(self._context, executable, self._stream)
        self._context.when_dropped(made, "cuGraphExecDestroy", executable)
        return made

    def _end_capture(self) -> Handle:
        graph = Handle()
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        return graph

    def measure(self, work: Callable[[], None]) -> float:
        """Seconds that the GPU takes for what `work` asks for, from its begin to its end."""
        begin, end = CudaEvent(self._context), CudaEvent(self._context)
        begin.record(self._stream)
        work()
        end.record(self._stream)
        end.wait()
        return end.seconds_since(begin)

    def _begin_products(self, found: FoundCublas) -> Multiplier | None:
        if found.cublas is None:
            return None
        memory = self.allocate(WORKSPACE_BYTES, zeroed=False)
        try:
            multiplier = Multiplier(self, found.cublas, self._context, self._stream, memory.pointer)
        except DeviceFailed as error:
            if found.named:
                raise
            self.products = f"none: {error}"
            return None
        self._product_memory = memory
        return multiplier

    def _free(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def _load(self, name: str, image: Image) -> _Function:
        if image.shared > self.gpu.shared_bytes:
            raise DeviceFailed(
                f"{name}: needs {image.shared} bytes of shared memory, a block of {self.gpu.name} has"
                f" {self.gpu.shared_bytes}; build the artifact again, with --target {self.gpu.target}"
            )
        log = ctypes.create_string_buffer(_LOG_BYTES)
        options = (c_int * 2)(JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES)
        values = (c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
        content = ctypes.create_string_buffer(image.content)  # ends with a zero, as text must
        try:
            module = self._context.make("cuModuleLoadDataEx", content, 2, options, values)
            self._context.when_dropped(self, "cuModuleUnload", module)
            function = self._context.make("cuModuleGetFunction", module, image.symbol.encode())
            if image.shared > PLAIN_SHARED_BYTES:
                self._call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_BYTES, image.shared)
        except DeviceFailed as error:
            said = " ".join(log.value.decode(errors="replace").split())
            raise DeviceFailed(f"{name}: {error}{f' [{said}]' if said else ''}") from None
        return _Function(function, image, self._stream)


def _pointer(place: Place) -> int:
    assert isinstance(place.memory, CudaMemory), "memory of another device"
    return place.memory.pointer + place.offset
