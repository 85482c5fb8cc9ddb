"""What this machine offers llmc: Python, packages, processor, memory, compiler, GPUs.

Looks without importing torch or transformers, so that it also works where they are broken.
"""

import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata

from packaging.requirements import Requirement

from llmc import __version__
from llmc.codegen.cpp.toolchain import find_compiler
from llmc.errors import LlmcError
from llmc.options import cache_directory, chosen_compiler, chosen_cublas
from llmc.runtime.cpu_features import features, levels, processor_name, usable_cpus
from llmc.runtime.cuda.cublas import find_cublas
from llmc.runtime.cuda.driver import LIBRARY, Driver

OPTIONAL_PACKAGES = ("triton",)
"""Packages that llmc reports but does not require."""
ISA_FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""The processor features that matter to kernels, as Linux spells them."""


@dataclass(frozen=True)
class Package:
    """One package that llmc uses."""

    name: str
    required: str | None
    """The versions that llmc accepts, such as `>=2.11`; None if it can do without."""
    version: str | None
    """The version installed; None if it is not."""
    ok: bool
    """Whether what is installed will do."""


@dataclass(frozen=True)
class Processor:
    """The CPU."""

    name: str
    architecture: str
    cores: int
    """Logical cores that this process may use."""
    isa: tuple[str, ...]
    """Which of `ISA_FLAGS` it has; empty where the system does not say."""
    levels: tuple[str, ...]
    """The levels of instructions for which libraries of native programs run here, best first."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler."""

    path: str
    """How it is called; empty if none that will do was found."""
    version: str
    """The first line of its `--version`; what was found instead and what to install, if none will do."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as its driver describes it."""

    name: str
    memory_bytes: int
    capability: str
    """Compute capability, such as `9.0`."""
    target: str
    """What to build programs for it with, such as `sm_90`."""
    driver: str
    """The version of CUDA that the driver is for."""
    products: str
    """Which library computes linears of many rows, or why none does."""


@dataclass(frozen=True)
class Examination:
    """Everything `llmc doctor` finds out."""

    llmc: str
    python: str
    executable: str
    system: str
    packages: tuple[Package, ...]
    processor: Processor
    memory_bytes: int
    compiler: Compiler
    gpus: tuple[Gpu, ...]
    gpu_problem: str
    """Why there are none; empty if there are."""
    cache: str

    @property
    def missing(self) -> tuple[Package, ...]:
        """The required packages that are absent or too old."""
        return tuple(package for package in self.packages if not package.ok)

    def to_json(self) -> dict[str, object]:
        """The same as plain values."""
        return asdict(self) | {"missing": [package.name for package in self.missing]}


def examine() -> Examination:
    """Look at this machine and this environment."""
    gpus, gpu_problem = find_gpus()
    return Examination(
        llmc=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        system=platform.platform(),
        packages=_packages(),
        processor=_processor(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        compiler=_compiler(),
        gpus=gpus,
        gpu_problem=gpu_problem,
        cache=str(cache_directory()),
    )


def _packages() -> tuple[Package, ...]:
    found = []
    for text in metadata.requires("llmc") or ():
        requirement = Requirement(text)
        if requirement.marker is not None:
            continue  # an extra: only for developing llmc
        version = _version(requirement.name)
        ok = version is not None and requirement.specifier.contains(version, prereleases=True)
        found.append(Package(requirement.name, str(requirement.specifier), version, ok))
    return (*found, *(Package(name, None, _version(name), True) for name in OPTIONAL_PACKAGES))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> Processor:
    isa = tuple(flag for flag in ISA_FLAGS if flag in features())
    return Processor(processor_name(), platform.machine(), len(usable_cpus()), isa, levels())


def _compiler() -> Compiler:
    try:
        found = find_compiler(chosen_compiler())
    except LlmcError as error:
        return Compiler("", str(error))
    return Compiler(" ".join(found.command), found.version)


def find_gpus(library: str = LIBRARY, cublas: str | None = None) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that this process may use, or why there are none.

    `library` is their driver, `cublas` the library of products (see `find_cublas`); None is the one that is chosen.
    """
    try:
        driver = Driver(library)
        found = driver.gpus()
        products = _products(driver, chosen_cublas() if cublas is None else cublas)
    except LlmcError as error:
        return (), str(error)
    gpus = [
        Gpu(gpu.name, gpu.memory_bytes, ".".join(map(str, gpu.capability)), gpu.target, driver.version_text, products)
        for gpu in found
    ]
    return tuple(gpus), ""


def _products(driver: Driver, cublas: str) -> str:
    try:
        return find_cublas(driver.version, cublas).says
    except LlmcError as error:
        return f"none: {error}"
