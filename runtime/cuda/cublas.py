"""NVIDIA's library of matrix products, cuBLAS, through ctypes: where it is found, its functions, errors with names.

Declarations follow `cublas_api.h` of CUDA 12 and 13. The library is that of the wheels which PyTorch brings, found
without importing them, or else the system's.
"""

import ctypes
import sys
from collections.abc import Iterable, Iterator
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path

from llmc.errors import DeviceFailed, MissingTool, OutOfMemory
from llmc.runtime.cuda.driver import MORE_MEMORY, Handle

VERSIONS = (13, 12)
"""The versions of CUDA whose libraries will do, best first. Each needs a driver for that version or a later one."""
FOLDERS = {13: ("nvidia/cu13/lib",), 12: ("nvidia/cublas/lib", "torch/lib")}
"""Where wheels put the library of a version, below a folder of packages."""
SYSTEM_FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib")
"""Where else than on the linker's path a system may have it."""
NONE = "none"
"""In place of the path of a library: do without."""
ALLOC_FAILED = 3
"""A value of cublasStatus_t."""

FUNCTIONS: dict[str, tuple[type, ...]] = {
    "cublasCreate_v2": (POINTER(Handle),),
    "cublasDestroy_v2": (Handle,),
    "cublasGetProperty": (c_int, POINTER(c_int)),
    "cublasSetStream_v2": (Handle, Handle),
    "cublasSetWorkspace_v2": (Handle, c_void_p, c_size_t),
    "cublasSetMathMode": (Handle, c_int),
    "cublasGemmEx": (
        *(Handle, c_int, c_int, c_int, c_int, c_int, c_void_p, c_void_p, c_int, c_int, c_void_p, c_int, c_int),
        *(c_void_p, c_void_p, c_int, c_int, c_int, c_int),
    ),
}
"""Types of the parameters of each function; all return a cublasStatus_t."""
_WAY_OUT = f"name in LLMC_CUBLAS a libcublas.so that loads, or {NONE!r} to do without"


class Cublas:
    """The library, loaded."""

    def __init__(self, path: str) -> None:
        """Load it from a path, or by a name that the linker knows. Raises MissingTool."""
        beside = Path(path).with_name(Path(path).name.replace("libcublas.", "libcublasLt."))
        try:
            if beside.is_absolute() and beside != Path(path) and beside.exists():
                ctypes.CDLL(str(beside))  # which it needs; the linker may not look there
            loaded = ctypes.CDLL(path)
        except OSError as error:
            raise MissingTool(f"{path}: {str(error).removeprefix(f'{path}: ')}; {_WAY_OUT}") from None
        self.path = path
        self._functions = {}
        for name, types in FUNCTIONS.items():
            function = getattr(loaded, name, None)
            if function is None:
                raise MissingTool(f"{path}: has no {name}, expected cuBLAS 12 or 13; {_WAY_OUT}")
            function.restype, function.argtypes = c_int, types
            self._functions[name] = function
        describe = getattr(loaded, "cublasGetStatusString", None)
        if describe is None:
            raise MissingTool(f"{path}: has no cublasGetStatusString, expected cuBLAS 12 or 13; {_WAY_OUT}")
        describe.restype, describe.argtypes = c_char_p, (c_int,)
        self._describe = describe
        self.version = ".".join(str(self._property(number)) for number in range(3))
        """Its own version, such as "13.1.0"."""

    def call(self, name: str, *arguments: object) -> None:
        """Call a function. Raises OutOfMemory if memory lacks, otherwise DeviceFailed with the reason."""
        code = self._functions[name](*arguments)
        if code == ALLOC_FAILED:
            raise OutOfMemory(f"{name}: not enough memory; {MORE_MEMORY}")
        if code:
            text = self._describe(code)
            said = text.decode(errors="replace") if text else "no reason given"
            raise DeviceFailed(f"{name}: status {code} ({said}) from {self.path}; see nvidia-smi")

    def _property(self, number: int) -> int:
        value = c_int()
        self.call("cublasGetProperty", number, ctypes.byref(value))
        return value.value


@dataclass(frozen=True)
class FoundCublas:
    """What came of looking for the library."""

    cublas: Cublas | None
    says: str
    """Which it is; or that there is none, and why."""
    named: bool = False
    """Whether it is the one that was asked for, and no other will do."""


NO_CUBLAS = FoundCublas(None, "none: nobody looked for cuBLAS")


def find_cublas(driver_version: int, library: str = "", packages: Iterable[str] | None = None) -> FoundCublas:
    """The first library that loads and that a driver will do for.

    driver_version: of CUDA, as the driver says it: 12040 is 12.4. library: its path or name; "" to look for it, `NONE`
    to do without. packages: folders of installed packages; those on `sys.path` when None. Raises MissingTool if
    `library` names one that does not load.
    """
    if library == NONE:
        return FoundCublas(None, "none: cuBLAS is not wanted")
    newest = driver_version // 1000
    names = " or ".join(f"libcublas.so.{version}" for version in reversed(VERSIONS) if version <= newest)
    said = f"no {names or 'libcublas for this driver'} among the packages of this Python or on this system"
    for path in [library] if library else _candidates(newest, sys.path if packages is None else packages):
        try:
            found = Cublas(path)
        except MissingTool as error:
            if library:
                raise
            if Path(path).is_absolute():  # it is there and does not load
                said = str(error)
            continue
        return FoundCublas(found, f"cuBLAS {found.version} ({path})", named=bool(library))
    return FoundCublas(None, f"none: {said}")


def _candidates(newest: int, packages: Iterable[str]) -> Iterator[str]:
    """Libraries that are there, then names that only the linker can say whether they are."""
    packages = list(packages)
    versions = [version for version in VERSIONS if version <= newest]
    for version in versions:
        places = [Path(folder, inner) for folder in packages if folder for inner in FOLDERS[version]]
        yield from (str(place / f"libcublas.so.{version}") for place in places if _is_there(place, version))
    for version in versions:
        yield f"libcublas.so.{version}"
        places = [Path(folder) for folder in SYSTEM_FOLDERS]
        yield from (str(place / f"libcublas.so.{version}") for place in places if _is_there(place, version))


def _is_there(folder: Path, version: int) -> bool:
    return (folder / f"libcublas.so.{version}").is_file()
