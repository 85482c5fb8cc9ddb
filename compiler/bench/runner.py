"""The measurement itself: every engine in its own process, all of them in turn in each round."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmc.bench.costs import Costs, costs_of
from llmc.bench.machine import Machine
from llmc.bench.peers import Contender, weight_bytes
from llmc.bench.process import EngineProcess
from llmc.bench.results import BenchResult, EngineResult, Sample
from llmc.bench.workloads import SHORT_PROMPT, Workload
from llmc.doctor import examine
from llmc.runtime.artifact import Artifact

Progress = Callable[[str], None]
"""Told what begins."""


@dataclass(frozen=True)
class Plan:
    """What to measure and how often."""

    artifact: Path
    workloads: Sequence[Workload]
    repetitions: int
    threads: int
    contenders: Sequence[Contender] = ()
    peer_python: str = sys.executable
    source: Path | None = None
    """The Hugging Face directory that the peers' formats are made from."""
    peer_models: Path | None = None
    """Where the peers' formats are kept."""
    text: Path | None = None
    """A text on which logits are compared with those of `source` in float32."""


@dataclass
class Running:
    """An engine under measurement."""

    process: EngineProcess
    result: EngineResult


def measure(plan: Plan, progress: Progress = lambda text: None) -> BenchResult:
    """Measure llmc, and the peers in interleaved rounds with it.

    Raises MissingTool if a peer or a compiler is not installed, EngineFailed if an engine fails.
    """
    artifact = Artifact.open(plan.artifact, verify="fast")
    vocabulary = artifact.manifest.model.vocab_size
    costs = costs_of(artifact)
    del artifact
    progress("probes of the machine")
    machine = Machine(plan.threads)
    result = BenchResult(
        model=plan.artifact.name,
        threads=plan.threads,
        processor=examine().processor.name,
        workloads=list(plan.workloads),
        bandwidths=[],
        peaks=machine.peaks(),
        engines=[],
    )
    running: list[Running] = []
    try:
        for start in (lambda: _start_own(plan, costs), *(_starter(plan, peer) for peer in plan.contenders)):
            running.append(start())
            result.engines.append(running[-1].result)
            progress(f"loaded {running[-1].result.label}")
            running[-1].process.pause()
        groups = _groups(plan.workloads)
        for turn in range(len(groups) * plan.repetitions):
            works = groups[turn // plan.repetitions]
            again = turn % plan.repetitions
            names = " ".join(work.name for work in works)
            progress(f"{names}: round {again + 1} of {plan.repetitions}")
            _round(running, works, result, machine, vocabulary, turn, warm_up=again == 0)
        if plan.text is not None:
            progress("accuracy")
            _compare(plan, running)
    finally:
        for engine in running:
            engine.process.close()
    return result


def _compare(plan: Plan, running: Sequence[Running]) -> None:
    """How exact each engine is."""
    from llmc.bench.exactness import Logits, compare

    assert plan.text is not None and plan.source is not None

    def logits_by(engine: Running) -> Callable[[Sequence[int]], Logits | None]:
        def logits_of(tokens: Sequence[int]) -> Logits | None:
            engine.process.resume()
            logits = engine.process.logits(tokens)
            engine.process.pause()
            return logits

        return logits_of

    for engine, found in zip(running, compare(plan.text, plan.source, [logits_by(e) for e in running]), strict=True):
        engine.result.accuracy = found
        if found is None:
            engine.result.notes.append("gives no logits, so its accuracy is not known")


def _groups(works: Sequence[Workload]) -> list[list[Workload]]:
    """What is measured in the same rounds: all that is short; each depth alone, as its cache is kept between rounds."""
    groups = [[work for work in works if not _deep(work)], *([work] for work in works if _deep(work))]
    return [group for group in groups if group]


def _deep(work: Workload) -> bool:
    return work.kind == "decode" and work.prompt > SHORT_PROMPT


def _round(
    running: list[Running],
    works: Sequence[Workload],
    result: BenchResult,
    machine: Machine,
    vocabulary: int,
    turn: int,
    *,
    warm_up: bool,
) -> None:
    """Each workload on each engine; the order of the engines turns from round to round."""
    first = turn % len(running)
    for work in works:
        reading = len(result.bandwidths)
        result.bandwidths.append(machine.bandwidth())
        for engine in (*running[first:], *running[:first]):
            engine.process.resume()
            if warm_up:  # the first run of each size allocates and compiles
                _sample(engine, work, vocabulary, -1)
            engine.result.samples.setdefault(work.name, []).append(_sample(engine, work, vocabulary, reading))
            engine.process.pause()


def _sample(engine: Running, work: Workload, vocabulary: int, reading: int) -> Sample:
    """One repetition. At a depth the prompt of the warm-up is used again, so that it is computed once only."""
    deep = _deep(work)
    prompts = work.prompts(vocabulary, 0 if deep else reading)
    first, steps, peak = engine.process.run(prompts, work.steps + 1, fresh=not deep)
    if not deep:
        engine.result.peak_rss = max(engine.result.peak_rss, peak)
    return Sample(reading, work.tokens / (first if work.kind == "prefill" else sum(steps)), first)


def _start_own(plan: Plan, costs: Costs) -> Running:
    process = EngineProcess("compiled", sys.executable, plan.threads)
    result = EngineResult("llmc", costs.format, costs=costs, weight_bytes=costs.weight_bytes)
    return _loaded(process, result, plan.artifact, plan.threads)


def _starter(plan: Plan, contender: Contender) -> Callable[[], Running]:
    def start() -> Running:
        assert plan.source is not None and plan.peer_models is not None
        process = contender.start(plan.peer_python, plan.threads)
        try:
            model = contender.prepared(process, plan.source, plan.peer_models)
        except BaseException:
            process.close()
            raise
        process.close()  # what the conversion allocated is not the engine's
        process = contender.start(plan.peer_python, plan.threads)
        result = EngineResult(contender.peer.name, contender.format, weight_bytes=weight_bytes(model))
        return _loaded(process, result, model, plan.threads)

    return start


def _loaded(process: EngineProcess, result: EngineResult, model: Path, threads: int) -> Running:
    try:
        reply = process.load(model, threads)
    except BaseException:
        process.close()
        raise
    result.load_seconds, result.import_seconds = reply["seconds"], reply["import_seconds"]
    result.version, result.program = reply["facts"]["version"], reply["facts"].get("program", "")
    return Running(process, result)
