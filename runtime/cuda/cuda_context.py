"""The context of one GPU: what everything that is made on it refers to until it is given back."""

import contextlib
import ctypes
import threading
import weakref
from collections.abc import Callable

from llmc.errors import DeviceFailed
from llmc.runtime.cuda.driver import Driver, Gpu, Handle


class _OfThread(threading.local):
    """What a thread has done; another thread with the same identifier, after its end, has done nothing."""

    entered = False


class CudaContext:
    """The primary context of a GPU, which is shared with whatever else this process runs on it."""

    def __init__(self, driver: Driver, gpu: Gpu) -> None:
        """Retain it. Raises DeviceFailed, and OutOfMemory."""
        self.driver = driver
        self.gpu = gpu
        self._here = _OfThread()
        self._handle = Handle()
        device = driver.device(gpu.ordinal)
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._handle), device)
        weakref.finalize(self, _give_back, driver.call, "cuDevicePrimaryCtxRelease_v2", device).atexit = False

    def enter(self) -> None:
        """Make it that of this thread. Raises DeviceFailed."""
        if not self._here.entered:
            self.driver.call("cuCtxSetCurrent", self._handle)
            self._here.entered = True

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver in this context, from whatever thread. Raises DeviceFailed, and OutOfMemory."""
        self.enter()
        self.driver.call(name, *arguments)

    def make(self, name: str, *arguments: object) -> Handle:
        """What a function makes whose first parameter points at the handle that it fills."""
        handle = Handle()
        self.call(name, ctypes.byref(handle), *arguments)
        return handle

    def when_dropped(self, owner: object, function: str, *arguments: object) -> None:
        """Call a function of the driver when `owner` is gone; when the process ends, all is given back without it."""
        weakref.finalize(owner, _give_back, self.call, function, *arguments).atexit = False


class CudaEvent:
    """A moment in a stream; as long as it was not recorded, it has passed."""

    def __init__(self, context: CudaContext) -> None:
        """Make it."""
        self._context = context
        self._handle = context.make("cuEventCreate", 0)
        context.when_dropped(self, "cuEventDestroy_v2", self._handle)

    def record(self, stream: Handle) -> None:
        """It passes when all that was asked of a stream so far is done."""
        self._context.call("cuEventRecord", self._handle, stream)

    def wait(self) -> None:
        """Wait until it has passed."""
        self._context.call("cuEventSynchronize", self._handle)

    def seconds_since(self, earlier: "CudaEvent") -> float:
        """Time between two events that have passed."""
        elapsed = ctypes.c_float()
        self._context.call("cuEventElapsedTime", ctypes.byref(elapsed), earlier._handle, self._handle)
        return elapsed.value / 1e3


def _give_back(call: Callable[..., None], function: str, *arguments: object) -> None:
    """After a kernel has failed, the driver refuses this too: all goes with the context, and the failure was said."""
    with contextlib.suppress(DeviceFailed):
        call(function, *arguments)
