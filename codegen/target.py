"""A machine as numbers: what the cost model and the choice of kernels know of it.

    Target.preset("avx512" | "avx2" | "portable" | "sm_80" | "sm_89" | "sm_90" | "sm_100" | "gfx942") -> Target
    Target.here() -> Target          this machine's CPU
    target.bandwidth.value           bytes a second; every number has a `source` that says where it comes from

Rates of a CPU preset are those of two cores; `with_cores` scales them. A measured rate depends on what else runs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from llmc.errors import BadOption
from llmc.runtime.cpu_features import levels, usable_cpus

Kind = Literal["cpu", "cuda", "hip"]

NUMBERS = ("int8", "bf16", "f32")
"""Formats in which machines multiply: 8-bit integers with 32-bit sums, bf16 with fp32 sums, fp32."""


@dataclass(frozen=True)
class Quantity:
    """A number and where it comes from."""

    value: float
    source: str
    """measured (where and when), datasheet, or estimated (from what)."""


@dataclass(frozen=True)
class Target:
    """One kind of machine."""

    name: str
    kind: Kind
    level: str
    """Instructions: avx512, avx2 or portable of CPUs, sm_90, gfx942 and the like of GPUs."""
    vector_bits: int
    """Width of a vector register; of GPUs, of a warp's or wavefront's 32-bit lanes."""
    cores: int
    """Cores, streaming multiprocessors or compute units."""
    caches: tuple[int, ...]
    """Bytes of the caches, the one nearest to a core first; private ones for each core, the last one in all."""
    bandwidth: Quantity
    """Bytes a second that all cores together read from memory."""
    peaks: Mapping[str, Quantity]
    """Operations a second of all cores, by `NUMBERS`; a multiplication with its addition counts two."""
    overhead: Quantity
    """Seconds that a region costs besides its work: a barrier, or a launch within a captured graph."""

    @staticmethod
    def preset(name: str) -> "Target":
        """The machine called `name`. Raises BadOption."""
        if name not in PRESETS:
            raise BadOption(f"target: {name!r} is not known; use one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @staticmethod
    def here(sysfs: Path = Path("/sys/devices/system/cpu")) -> "Target":
        """This machine's CPU: its level and cores, its caches where the system tells them, and the preset's rates."""
        cpus = usable_cpus()
        target = PRESETS[levels()[0]].with_cores(len(cpus))
        return replace(target, name="here", caches=_caches(sysfs / f"cpu{cpus[0]}" / "cache") or target.caches)

    def with_cores(self, cores: int) -> "Target":
        """The same machine with so many cores: arithmetic scales; one core is taken to read 0.6 of what all read."""
        if cores == self.cores:
            return self
        share = cores / self.cores
        source = f"scaled from {self.cores} cores: "
        peaks = {name: Quantity(peak.value * share, source + peak.source) for name, peak in self.peaks.items()}
        bandwidth = Quantity(self.bandwidth.value * max(0.6, min(1.0, share)), source + self.bandwidth.source)
        return replace(self, cores=cores, peaks=MappingProxyType(peaks), bandwidth=bandwidth)

    def with_bandwidth(self, bytes_per_second: float, source: str) -> "Target":
        """The same machine with a bandwidth that was measured."""
        return replace(self, bandwidth=Quantity(bytes_per_second, source))

    def to_json(self) -> dict[str, object]:
        """The same as plain values."""
        peaks = {name: asdict(peak) for name, peak in self.peaks.items()}
        plain = asdict(replace(self, peaks={}))
        return {**plain, "caches": list(self.caches), "peaks": peaks}


def _caches(directory: Path) -> tuple[int, ...]:
    """Sizes of the data caches that sysfs lists for a core, nearest first; empty where it lists none."""
    found: dict[int, int] = {}
    for entry in sorted(directory.glob("index[0-9]*")):
        try:
            kind = (entry / "type").read_text().strip()
            level = int((entry / "level").read_text())
            size = (entry / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1:], 1)
        if kind != "Instruction" and size.rstrip("KMG").isdigit():
            found[level] = int(size.rstrip("KMG")) * unit
    return tuple(found[level] for level in sorted(found))


_ZEN4 = "measured: 2 shared cores of an AMD EPYC (Zen 4), 2026-11-21"
_SHEET = "datasheet, dense"


def _cpu(level: str, bits: int, rates: tuple[float, float, float], source: str) -> Target:
    return Target(
        name=level,
        kind="cpu",
        level=level,
        vector_bits=bits,
        cores=2,
        caches=(32 << 10, 1 << 20, 32 << 20),
        bandwidth=Quantity(45e9, f"{_ZEN4}; 36e9 to 55e9 with what else the host runs"),
        peaks=_peaks(rates, source),
        overhead=Quantity(1e-6, "estimated: one spin barrier of two threads and its imbalance"),
    )


def _gpu(
    name: str,
    machine: str,
    cores: int,
    caches: tuple[int, ...],
    bandwidth: float,
    rates: tuple[float, float, float],
    kind: Kind = "cuda",
) -> Target:
    return Target(
        name=name,
        kind=kind,
        level=name,
        vector_bits=1024 if kind == "cuda" else 2048,
        cores=cores,
        caches=caches,
        bandwidth=Quantity(bandwidth, f"datasheet, {machine}"),
        peaks=_peaks(rates, f"{_SHEET}, {machine}"),
        overhead=Quantity(2.5e-6, "estimated: a kernel boundary within a captured graph, with ramp and tail"),
    )


def _peaks(rates: tuple[float, float, float], source: str) -> Mapping[str, Quantity]:
    return MappingProxyType({name: Quantity(rate, source) for name, rate in zip(NUMBERS, rates, strict=True)})


PRESETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            _cpu("avx512", 512, (860e9, 430e9, 185e9), _ZEN4),
            _cpu("avx2", 256, (285e9, 90e9, 185e9), "estimated from avx512: three instructions for a dot product"),
            _cpu("portable", 128, (30e9, 20e9, 45e9), "estimated from avx512: vectors of 128 bits, no fused products"),
            _gpu("sm_80", "A100 SXM 80 GB", 108, (192 << 10, 40 << 20), 2.04e12, (624e12, 312e12, 19.5e12)),
            _gpu("sm_89", "L40S", 142, (128 << 10, 96 << 20), 0.864e12, (733e12, 362e12, 91.6e12)),
            _gpu("sm_90", "H200 SXM", 132, (256 << 10, 50 << 20), 4.8e12, (1979e12, 989e12, 67e12)),
            _gpu("sm_100", "B200 SXM", 148, (256 << 10, 126 << 20), 7.7e12, (4500e12, 2250e12, 75e12)),
            _gpu("gfx942", "MI300X", 304, (32 << 10, 256 << 20), 5.3e12, (2615e12, 1307e12, 163e12), "hip"),
        )
    }
)
"""The machines that programs are built for, by name."""
