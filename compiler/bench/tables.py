"""What `llmc bench` prints: plain values in, columns and rows out."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmc.bench.results import BenchResult, EngineResult


@dataclass(frozen=True)
class Table:
    """Columns and rows of texts; all columns but the first `left` are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def markdown(self) -> Iterator[str]:
        """The lines of the table in Markdown."""
        yield f"**{self.title}**"
        yield ""
        yield "| " + " | ".join(self.columns) + " |"
        yield "|" + "|".join("---" if at < self.left else "---:" for at in range(len(self.columns))) + "|"
        yield from ("| " + " | ".join(row) + " |" for row in self.rows)


def tables(result: BenchResult) -> list[Table]:
    """Speed, engine by engine and test by test; then what each engine needs, and how exact it is."""
    return [_speeds(result), _needs(result)]


def machine_lines(result: BenchResult) -> Iterator[str]:
    """The machine, and its limits while this ran."""
    small = [bandwidth.small_pages / 1e9 for bandwidth in result.bandwidths]
    huge = [bandwidth.huge_pages / 1e9 for bandwidth in result.bandwidths]
    peaks = [("int8", result.peaks.int8), ("bf16", result.peaks.bfloat16), ("fp32", result.peaks.float32)]
    yield f"{result.model} on {result.threads} threads of {result.processor}"
    yield (
        f"streaming reads: {min(small):.1f} to {max(small):.1f} GB/s in pages of 4 KiB,"
        f" {min(huge):.1f} to {max(huge):.1f} GB/s in huge pages"
    )
    yield "peak of arithmetic: " + ", ".join(f"{name} {peak / 1e9:.0f} GOP/s" for name, peak in peaks if peak)


def _speeds(result: BenchResult) -> Table:
    rows = []
    for work in result.workloads:
        for engine in result.engines:
            rates = engine.rates(work.name)
            if not rates:
                continue
            ratio = None if engine is result.engines[0] else result.ratio(engine, work.name)
            rows.append(
                [
                    engine.label,
                    work.name,
                    _number(statistics.median(rates)),
                    f"{_number(min(rates))} to {_number(max(rates))}",
                    _percent(result.fraction(engine, work)),
                    "" if ratio is None else f"{ratio:.2f}",
                ]
            )
    columns = ["engine", "test", "tokens/s", "range", "of limit", "llmc is x"]
    return Table("speed (decode against bandwidth, prefill against arithmetic)", columns, rows, left=2)


def _needs(result: BenchResult) -> Table:
    accuracy = any(engine.accuracy for engine in result.engines)
    columns = ["engine", "version", "weights MB", "load + import s", "first token ms", "peak RSS MB"]
    columns += ["KL", "perplexity", "top-1"] if accuracy else []
    rows = [[*_need(engine, result), *(_exactness(engine) if accuracy else [])] for engine in result.engines]
    return Table("load, memory, accuracy" if accuracy else "load and memory", columns, rows, left=2)


def _need(engine: EngineResult, result: BenchResult) -> list[str]:
    first = engine.first_token(result.workloads)
    return [
        engine.label,
        f"{engine.version} {engine.program}".strip(),
        f"{engine.weight_bytes / 1e6:.0f}",
        f"{engine.load_seconds:.2f} + {engine.import_seconds:.2f}",
        "" if first is None else f"{first * 1e3:.0f}",
        f"{engine.peak_rss / 1e6:.0f}",
    ]


def _exactness(engine: EngineResult) -> list[str]:
    if engine.accuracy is None:
        return ["not given"] * 3
    found = engine.accuracy
    return [f"{found['kl']:.4f}", f"{found['perplexity']:.2f}", f"{found['top1']:.1%}"]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
