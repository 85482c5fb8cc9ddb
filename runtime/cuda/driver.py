"""NVIDIA's driver, libcuda, through ctypes: the functions that the runtime calls, and errors with names.

Declarations follow `cuda.h` of CUDA 12 and 13. Where a function has versions, the name is that of the version declared
there, such as `cuMemAlloc_v2`.
"""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass

from llmc.errors import DeviceFailed, MissingTool, OutOfMemory

LIBRARY = "libcuda.so.1"
OLDEST_VERSION = 12_000
"""CUDA 12.0: the first whose driver has all of the functions."""
PDL_VERSION = 12_030
"""CUDA 12.3: the first whose graphs keep programmatic dependencies."""
OUT_OF_MEMORY, NO_DEVICE = 2, 100
"""Values of CUresult."""
FATAL = frozenset((700, 702, 710, 714, 715, 716, 717, 718, 719, 721))
"""Values of CUresult, each for what a kernel did, after which the driver refuses everything until the process ends."""
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
MULTIPROCESSORS, SHARED_MEMORY_OF_A_BLOCK = 16, 97
"""Values of CUdevice_attribute; the last is the most that a block can opt in to."""
MAX_DYNAMIC_SHARED_BYTES = 8
"""A value of CUfunction_attribute."""
PROGRAMMATIC_STREAM_SERIALIZATION = 6
"""A value of CUlaunchAttributeID."""
NON_BLOCKING_STREAM = 1
CAPTURE_RELAXED = 2
"""A value of CUstreamCaptureMode: memory may be given back by this thread meanwhile."""
JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES = 5, 6
"""Values of CUjit_option."""

LEVELS = (80, 89, 90, 100)
"""Compute capabilities, times ten, that programs are built for."""

MORE_MEMORY = "end what else uses the GPU (see nvidia-smi), serve less at a time, or use --program cpu"
"""The way out where memory lacks."""
_NO_GPU = "no NVIDIA GPU is visible; see nvidia-smi and CUDA_VISIBLE_DEVICES"

Handle = c_void_p
"""CUcontext, CUstream, CUevent, CUmodule, CUfunction, CUgraph and CUgraphExec are pointers."""
DevicePointer = c_uint64
"""CUdeviceptr."""


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute; its value is a union of 64 bytes, of which the runtime uses the first int."""

    _fields_ = [("id", c_int), ("pad", c_int), ("value", c_int), ("rest", c_int * 15)]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        *((name, c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_bytes")),
        ("stream", Handle),
        ("attributes", POINTER(LaunchAttribute)),
        ("attribute_count", c_uint),
    ]


FUNCTIONS: dict[str, tuple[type, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(Handle), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (Handle,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(DevicePointer), c_size_t),
    "cuMemFree_v2": (DevicePointer,),
    "cuMemAllocHost_v2": (POINTER(c_void_p), c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (DevicePointer, c_void_p, c_size_t, Handle),
    "cuMemcpyDtoHAsync_v2": (c_void_p, DevicePointer, c_size_t, Handle),
    "cuMemcpyDtoDAsync_v2": (DevicePointer, DevicePointer, c_size_t, Handle),
    "cuMemsetD8Async": (DevicePointer, ctypes.c_ubyte, c_size_t, Handle),
    "cuStreamCreate": (POINTER(Handle), c_uint),
    "cuStreamDestroy_v2": (Handle,),
    "cuStreamSynchronize": (Handle,),
    "cuEventCreate": (POINTER(Handle), c_uint),
    "cuEventDestroy_v2": (Handle,),
    "cuEventRecord": (Handle, Handle),
    "cuEventSynchronize": (Handle,),
    "cuEventElapsedTime": (POINTER(c_float), Handle, Handle),
    "cuModuleLoadDataEx": (POINTER(Handle), c_void_p, c_uint, POINTER(c_int), POINTER(c_void_p)),
    "cuModuleUnload": (Handle,),
    "cuModuleGetFunction": (POINTER(Handle), Handle, c_char_p),
    "cuFuncSetAttribute": (Handle, c_int, c_int),
    "cuLaunchKernelEx": (POINTER(LaunchConfig), Handle, POINTER(c_void_p), POINTER(c_void_p)),
    "cuStreamBeginCapture_v2": (Handle, c_int),
    "cuStreamEndCapture": (Handle, POINTER(Handle)),
    "cuGraphInstantiateWithFlags": (POINTER(Handle), Handle, c_uint64),
    "cuGraphLaunch": (Handle, Handle),
    "cuGraphExecDestroy": (Handle,),
    "cuGraphDestroy": (Handle,),
}
"""Types of the parameters of each function; all return a CUresult."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine, as the driver describes it."""

    ordinal: int
    """Its number among those that this process may see."""
    name: str
    capability: tuple[int, int]
    """Compute capability, such as (9, 0)."""
    memory_bytes: int
    multiprocessors: int
    shared_bytes: int
    """Shared memory that one block can have."""

    @property
    def kind(self) -> str:
        """What measurements of GPUs like this one are kept under."""
        return f"{self.name}, {self.level}, {self.multiprocessors} multiprocessors"

    @property
    def level(self) -> str:
        """What kernels for it are called, such as "sm_90"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def target(self) -> str:
        """What to build a program for that is to run on it; "cpu" if there is no such target."""
        exact = 10 * self.capability[0] + self.capability[1]
        if exact in LEVELS:
            return f"sm_{exact}"
        return f"sm_{LEVELS[0]}" if exact > LEVELS[0] else "cpu"  # its PTX is compiled by the driver


class Driver:
    """The driver of this machine."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Load and initialise it. Raises MissingTool if there is none that will do, or no GPU."""
        try:
            loaded = ctypes.CDLL(library)
        except OSError as error:
            reason = str(error).removeprefix(f"{library}: ")
            raise MissingTool(f"{library}: {reason}; GPU programs need an NVIDIA GPU and its driver") from None
        self._functions = {}
        for name, types in FUNCTIONS.items():
            function = getattr(loaded, name, None)
            if function is None:
                raise MissingTool(f"{library}: has no {name}; install a driver for CUDA 12 (525 or newer)")
            function.restype, function.argtypes = c_int, types
            self._functions[name] = function
        if (code := self._functions["cuInit"](0)) == NO_DEVICE:
            raise MissingTool(_NO_GPU)
        if code:
            raise MissingTool(f"{library}: cannot be used, {self._described(code)}; see nvidia-smi")
        version = c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.version = version.value
        """The version of CUDA that it is for: 12040 is 12.4."""
        if self.version < OLDEST_VERSION:
            raise MissingTool(f"{library}: the driver is for CUDA {self.version_text}; install one for 12.0 or newer")

    @property
    def version_text(self) -> str:
        """The version of CUDA as people write it."""
        return f"{self.version // 1000}.{self.version % 1000 // 10}"

    def call(self, name: str, *arguments: object) -> None:
        """Call a function. Raises OutOfMemory if memory lacks, otherwise DeviceFailed with the reason."""
        code = self._functions[name](*arguments)
        if code:
            self._failed(name, code)

    def gpus(self) -> list[Gpu]:
        """The GPUs that this process may use, in the driver's order. Raises MissingTool if there is none."""
        count = c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if not count.value:
            raise MissingTool(_NO_GPU)
        return [self._describe(ordinal) for ordinal in range(count.value)]

    def device(self, ordinal: int) -> int:
        """The driver's handle of a GPU."""
        device = c_int()
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        return device.value

    def _describe(self, ordinal: int) -> Gpu:
        device = self.device(ordinal)
        name = ctypes.create_string_buffer(256)
        memory = c_size_t()
        self.call("cuDeviceGetName", name, len(name), device)
        self.call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)

        def attribute(number: int) -> int:
            value = c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
            return value.value

        return Gpu(
            ordinal=ordinal,
            name=name.value.decode(errors="replace"),
            capability=(attribute(COMPUTE_CAPABILITY_MAJOR), attribute(COMPUTE_CAPABILITY_MINOR)),
            memory_bytes=memory.value,
            multiprocessors=attribute(MULTIPROCESSORS),
            shared_bytes=attribute(SHARED_MEMORY_OF_A_BLOCK),
        )

    def _failed(self, name: str, code: int) -> None:
        if code == OUT_OF_MEMORY:
            raise OutOfMemory(f"{name}: not enough memory; {MORE_MEMORY}")
        ways_out = (
            "start again, since this process has lost the GPU, or use" if code in FATAL else "see nvidia-smi, and use"
        )
        raise DeviceFailed(f"{name}: {self._described(code)}; {ways_out} --program cpu to do without the GPU")

    def _described(self, code: int) -> str:
        """The driver's name of an error, and its text."""
        texts = []
        for function in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            if self._functions[function](code, ctypes.byref(text)) == 0 and text.value:
                texts.append(text.value.decode(errors="replace"))
        return f"{texts[0]} ({', '.join(texts[1:])})" if texts else f"error {code}"
