"""Which instructions this machine has, and which compiled library of an artifact it can therefore run.

Linux lists in /proc/cpuinfo what the processor has and the kernel lets programs use. A library is chosen only where
every feature that its compiler was allowed to use is listed, so no program ever meets an illegal instruction.
"""

import os
import platform
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from llmc.errors import ArtifactRejected

_V2 = {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}
_V3 = _V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
LEVELS: Mapping[str, frozenset[str]] = {
    "avx512": frozenset(_V4 | {"avx512_vnni", "avx512_bf16", "avx512vbmi"}),
    "avx2": frozenset(_V3),
    "portable": frozenset(),
}
"""Levels of instructions, best first, and the features that each needs, as Linux on x86-64 spells them."""
_X86 = ("x86_64", "amd64")
_ELF_MACHINES = {3: "i686", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}

_T = TypeVar("_T")


@lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """The features of this machine's processor; empty where the system does not say."""
    try:
        return read_features(Path("/proc/cpuinfo").read_text())
    except (OSError, UnicodeDecodeError):
        return frozenset()


def read_features(text: str) -> frozenset[str]:
    """The features that all processors of a /proc/cpuinfo have in common."""
    listed = [
        set(value.split())
        for key, _, value in (line.partition(":") for line in text.splitlines())
        if key.strip() in ("flags", "Features")
    ]
    return frozenset(set.intersection(*listed)) if listed else frozenset()


@lru_cache(maxsize=1)
def processor_name() -> str:
    """What this machine's processor calls itself, such as "AMD EPYC 9354"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or "unknown"


def levels(having: Collection[str] | None = None, machine: str | None = None) -> tuple[str, ...]:
    """The levels that this machine can run (or one of type `machine` with the features `having`), best first."""
    have = features() if having is None else having
    if (platform.machine() if machine is None else machine).lower() not in _X86:
        return ("portable",)
    return tuple(name for name, needed in LEVELS.items() if needed <= set(have))


def choose(libraries: Mapping[str, _T], runnable: Iterable[str] | None = None) -> tuple[str, _T]:
    """The best of `libraries`, by level, that this machine can run.

    Raises ArtifactRejected, with what the artifact holds and what this machine has, if it can run none of them.
    """
    runnable = levels() if runnable is None else tuple(runnable)
    for name in runnable:
        if name in libraries:
            return name, libraries[name]
    raise ArtifactRejected(
        f"program cpu: the artifact holds {', '.join(libraries) or 'no library'}, this machine runs"
        f" {', '.join(runnable)}; build it again on such a machine, or use --program reference"
    )


def machine_of(library: bytes) -> str | None:
    """The machine that a shared library is for, such as "x86_64"; None if it is no ELF file of a known machine."""
    if library[:4] != b"\x7fELF" or len(library) < 20:
        return None
    return _ELF_MACHINES.get(int.from_bytes(library[18:20], "little" if library[5] == 1 else "big"))


def usable_cpus() -> tuple[int, ...]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))
