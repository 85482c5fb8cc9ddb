"""`llmc bench --device cuda`: an artifact on this machine's GPU, beside what the GPU's memory can deliver."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmc.bench.costs import Costs, costs_of
from llmc.bench.gpu_kernels import KernelTime, kernel_times
from llmc.bench.gpu_probes import Boundaries, GpuProbes
from llmc.bench.tables import Table
from llmc.bench.workloads import Workload
from llmc.loading import load
from llmc.runtime.artifact import Artifact
from llmc.runtime.cuda.cuda_device import CudaDevice
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session

SCHEMA = "llmc.bench.gpu/1"
POSITION = 512
"""Tokens in the cache when kernels are measured one by one, or as many as the context has room for."""


@dataclass
class GpuResult:
    """One run."""

    model: str
    gpu: str
    driver: str
    """The version of CUDA that it is for."""
    bandwidth: float
    """Bytes a second that a kernel reads which does nothing else."""
    boundaries: Boundaries
    costs: Costs
    workloads: list[Workload]
    rates: dict[str, list[float]] = field(default_factory=dict)
    """Tokens a second, of all sequences together, by workload."""
    kernels: list[KernelTime] = field(default_factory=list)
    position: int = POSITION
    """Tokens in the cache then."""
    products: str = ""
    """Which library computes linears of many rows, or why none does."""

    def fraction(self, work: Workload) -> float | None:
        """Of the bandwidth what the bytes of its decode steps take up; None of a prefill, which computes."""
        if work.kind == "prefill":
            return None
        step_bytes = self.costs.weight_bytes + work.sequences * self.costs.cache_bytes(work.mean_position)
        return statistics.median(self.rates[work.name]) / work.sequences * step_bytes / self.bandwidth

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "gpu": self.gpu,
            "driver": self.driver,
            "bandwidth_bytes_per_second": self.bandwidth,
            "boundary_seconds": asdict(self.boundaries),
            "weight_bytes_per_token": self.costs.weight_bytes,
            "tests": [
                {
                    "name": work.name,
                    "tokens_per_second": self.rates[work.name],
                    "fraction_of_limit": self.fraction(work),
                }
                for work in self.workloads
            ],
            "kernels_position": self.position,
            "kernels": [asdict(kernel) for kernel in self.kernels],
            "products": self.products,
        }

    def lines(self) -> Iterator[str]:
        """The machine and its limits."""
        plain, dependent = self.boundaries.plain, self.boundaries.dependent
        also = "" if dependent is None else f", {dependent * 1e6:.2f} us with dependent launch"
        yield f"{self.model} on {self.gpu}, driver for CUDA {self.driver}"
        yield f"reads {self.bandwidth / 1e9:.0f} GB/s; a kernel boundary in a graph takes {plain * 1e6:.2f} us{also}"
        yield f"library for linears of many rows: {self.products}"

    def tables(self) -> list[Table]:
        """Speed, then the kernels of a decode step."""
        speeds = [
            [work.name, f"{statistics.median(rates):.1f}", f"{min(rates):.1f} to {max(rates):.1f}", _percent(share)]
            for work in self.workloads
            for rates, share in [(self.rates[work.name], self.fraction(work))]
        ]
        kernels = [
            [
                time.kernel,
                str(time.launches),
                f"{time.seconds * 1e6:.1f}",
                f"{time.seconds / time.launches * 1e6:.2f}",
                f"{time.weight_bytes / 1e6:.1f}" if time.weight_bytes else "",
                _percent(time.weight_bytes / time.seconds / self.bandwidth if time.weight_bytes else None),
            ]
            for time in self.kernels
        ]
        columns = ["kernel", "launches", "us", "us each", "weights MB", "of limit"]
        return [
            Table("speed (decode against the reading of memory)", ["test", "tokens/s", "range", "of limit"], speeds),
            Table(f"kernels of a decode step at position {self.position}", columns, kernels),
        ]


def measure(
    artifact: Path,
    works: Sequence[Workload],
    repetitions: int,
    *,
    trust: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> GpuResult:
    """Measure an artifact on the first GPU that this process may see.

    Raises MissingTool without a GPU, and what `llmc.load` raises.
    """
    driver = Driver()
    gpu = driver.gpus()[0]
    progress("probes of the GPU")
    probes = GpuProbes(driver, gpu)
    costs = costs_of(Artifact.open(artifact, verify="fast"))
    result = GpuResult(
        artifact.name, gpu.name, driver.version_text, probes.bandwidth(), probes.boundaries(), costs, list(works)
    )
    del probes
    progress(f"loading {artifact.name}")
    session = load(artifact, program="cuda", trust=trust).session
    for work in works:
        progress(work.name)
        run_workload(session, work, -1)  # the first run of each size allocates and records
        result.rates[work.name] = [run_workload(session, work, seed) for seed in range(repetitions)]
    program = session.program
    assert isinstance(program, GpuProgram) and isinstance(program.device, CudaDevice)
    result.products = program.device.products
    progress("kernels")
    result.position = min(POSITION, session.ranges.context - 1)
    result.kernels = kernel_times(program, program.device, sequences=1, position=result.position)
    return result


def run_workload(session: Session, work: Workload, seed: int) -> float:
    """Tokens a second of one run, as a caller of `generate` sees them."""
    prompts = work.prompts(session.facts.vocab_size, seed)
    made = session.generate(prompts, SamplingParams(max_new_tokens=work.steps + 1, ignore_eos=True))
    if work.kind == "prefill":
        return work.tokens / max(one.timings.prefill for one in made)
    return work.tokens / max(one.timings.decode for one in made)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
