"""What was measured, as data: samples with the machine's limit at that moment, and what follows from them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from llmc.bench.costs import Costs, arithmetic_of
from llmc.bench.machine import Bandwidth, Peaks
from llmc.bench.workloads import Workload

SCHEMA = "llmc.bench/1"


@dataclass(frozen=True)
class Sample:
    """One repetition."""

    reading: int
    """The reading of the bandwidth just before it; the engines' samples of one workload and round share one."""
    rate: float
    """Tokens per second, of all sequences together."""
    first_token: float
    """Seconds from the prompt to its first token."""


@dataclass
class EngineResult:
    """Everything measured of one engine."""

    name: str
    format: str
    version: str = ""
    program: str = ""
    load_seconds: float = 0.0
    import_seconds: float = 0.0
    peak_rss: int = 0
    """Most bytes resident while the short workloads ran."""
    costs: Costs | None = None
    """Known for llmc; of a peer only the bytes of its weights."""
    weight_bytes: int = 0
    """Bytes of weights read for each decoded token."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """By name of the workload."""
    accuracy: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Such as `llama.cpp q4_0`."""
        return f"{self.name} {self.format}".strip()

    def first_token(self, works: Sequence[Workload]) -> float | None:
        """Median seconds to the first token after the longest prompt of a prefill."""
        prefills = [work for work in works if work.kind == "prefill" and work.name in self.samples]
        if not prefills:
            return None
        longest = max(prefills, key=lambda work: work.prompt)
        return statistics.median(sample.first_token for sample in self.samples[longest.name])

    def rates(self, workload: str) -> list[float]:
        """Tokens per second of each repetition."""
        return [sample.rate for sample in self.samples.get(workload, [])]


@dataclass
class BenchResult:
    """One run of `llmc bench`. The first engine is llmc."""

    model: str
    threads: int
    processor: str
    workloads: list[Workload]
    bandwidths: list[Bandwidth]
    """One reading for each workload and round."""
    peaks: Peaks
    engines: list[EngineResult]

    def fraction(self, engine: EngineResult, work: Workload) -> float | None:
        """How near the engine comes to the machine's limit, the median over rounds; None where it is not known.

        Decoding is held against the streaming bandwidth of its round, prefill against the peak of its arithmetic. Bytes
        of cache are those of llmc for every engine, in its dtype.
        """
        costs = engine.costs or self.engines[0].costs
        samples = engine.samples.get(work.name)
        if costs is None or not samples:
            return None
        if work.kind == "prefill":
            operations = costs.token_operations + costs.row_operations / work.prompt
            return (
                statistics.median(sample.rate for sample in samples)
                * operations
                / self.peaks.of(arithmetic_of(engine.format))
            )
        if not engine.weight_bytes:
            return None
        step_bytes = engine.weight_bytes + work.sequences * costs.cache_bytes(work.mean_position)
        return statistics.median(
            sample.rate / work.sequences * step_bytes / self.bandwidths[sample.reading].best for sample in samples
        )

    def ratio(self, engine: EngineResult, workload: str) -> float | None:
        """llmc's speed over the engine's: the median of the ratios within each round."""
        ours = {sample.reading: sample.rate for sample in self.engines[0].samples.get(workload, [])}
        theirs = {sample.reading: sample.rate for sample in engine.samples.get(workload, [])}
        ratios = [ours[reading] / theirs[reading] for reading in ours.keys() & theirs.keys()]
        return statistics.median(ratios) if ratios else None

    def to_json(self) -> dict[str, object]:
        """Plain values; see `tests/bench` for the schema."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "threads": self.threads,
            "machine": {
                "processor": self.processor,
                "peaks_operations_per_second": asdict(self.peaks),
                "bandwidth_bytes_per_second": [asdict(bandwidth) for bandwidth in self.bandwidths],
            },
            "workloads": [asdict(work) for work in self.workloads],
            "engines": [self._engine(engine) for engine in self.engines],
        }

    def _engine(self, engine: EngineResult) -> dict[str, object]:
        return {
            "name": engine.name,
            "format": engine.format,
            "version": engine.version,
            "program": engine.program,
            "load_seconds": engine.load_seconds,
            "import_seconds": engine.import_seconds,
            "peak_rss_bytes": engine.peak_rss,
            "weight_bytes_per_token": engine.weight_bytes,
            "accuracy": engine.accuracy,
            "notes": engine.notes,
            "tests": [self._test(engine, work) for work in self.workloads if engine.samples.get(work.name)],
        }

    def _test(self, engine: EngineResult, work: Workload) -> dict[str, object]:
        samples = engine.samples[work.name]
        costs = engine.costs or self.engines[0].costs
        return {
            "name": work.name,
            "limit": "arithmetic" if work.kind == "prefill" else "bandwidth",
            "tokens_per_second": summary([sample.rate for sample in samples]),
            "first_token_seconds": summary([sample.first_token for sample in samples]) if not work.steps else None,
            "cache_bytes_per_token": costs.cache_bytes(work.mean_position) if costs else None,
            "fraction_of_limit": self.fraction(engine, work),
            "llmc_is_times_as_fast": self.ratio(engine, work.name),
        }


def summary(values: Sequence[float]) -> Mapping[str, object]:
    """Median, extremes and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "samples": list(values)}
