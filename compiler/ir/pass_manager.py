"""Running passes: verify, time, count, dump, stop. Nowhere else.

Each phase is a name and its passes. The graph is checked after every pass that changed it. With a dump directory, each
changed graph is written to a numbered file, `003-fuse_qkv.py`. When a pass fails, the graph before it is written, and
the error says where, and how to come back to this point.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from llmc.errors import BuildFailed, LlmcError, UnsupportedModel
from llmc.ir.model import Model
from llmc.ir.rewrite import Applied, Refused, Rewriter
from llmc.ir.show import show
from llmc.ir.verify import Verifier

Progress = Callable[[str, float | None, dict[str, object]], None]
"""Told that a phase begins (seconds None), and that it ended after so many seconds with these facts."""


class Pass(Protocol):
    """One idea that changes graphs: a frozen dataclass whose fields are its options. A second run changes nothing."""

    name: ClassVar[str]

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Change `model`; return the number of changes."""


@dataclass(frozen=True)
class PassRun:
    """What one pass did."""

    phase: str
    name: str
    changes: int
    rewrites: int
    """How many of the changes went through the rewriter, numbered and proved."""
    seconds: float
    nodes: int
    """Calls in the graph afterwards."""


@dataclass
class Report:
    """What a pipeline did to a model; plain data."""

    passes: list[PassRun] = field(default_factory=list)
    applied: list[Applied] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    dumps: list[str] = field(default_factory=list)
    """The files written."""

    def as_dict(self) -> dict[str, object]:
        """The report as what JSON knows."""
        return asdict(self)


def run_passes(
    model: Model,
    phases: Mapping[str, Sequence[Pass]],
    *,
    dump: Path | None = None,
    stop_after: int | None = None,
    prove: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Run the passes of all `phases` over `model`, in order.

    Args:
        dump: directory for the numbered dumps.
        stop_after: make only so many rewrites; passes still run, what they do without the rewriter included.
        prove: test every rewrite on random inputs.
        progress: told of the beginning and end of each phase.

    Raises:
        UnsupportedModel: a pass met something that llmc cannot compile.
        BuildFailed: a rewrite or pass is wrong; the message names the file with the graph before it.
        InvalidGraph: a pass left a graph that breaks an invariant; likewise.
    """
    rewriter = Rewriter(model, prove=prove, stop_after=stop_after)
    report = Report(applied=rewriter.applied, refused=rewriter.refused)
    run = _Run(model, rewriter, report, Verifier(), dump)
    run.begin()
    for phase, passes in phases.items():
        start, first = time.perf_counter(), len(report.passes)
        if progress is not None:
            progress(phase, None, {})
        for step in passes:
            run.step(phase, step)
        if progress is not None:
            changes = sum(done.changes for done in report.passes[first:])
            facts: dict[str, object] = {"changes": changes, "nodes": sum(1 for _ in model.calls())}
            progress(phase, time.perf_counter() - start, facts)
    return report


@dataclass
class _Run:
    """The state of one pipeline run."""

    model: Model
    rewriter: Rewriter
    report: Report
    verifier: Verifier
    dump: Path | None
    text: str = ""
    """The graph as it was before the pass that runs."""
    count: int = 0

    def begin(self) -> None:
        self.verifier.check(self.model)
        self.text = show(self.model)
        self._write("000-start.py", "the graph before the first pass")

    def step(self, phase: str, step: Pass) -> None:
        self.count += 1
        start, before = time.perf_counter(), len(self.rewriter.applied)
        try:
            changes = step.run(self.model, self.rewriter)
            changes += self.model.drop_unused_weights()
            if changes:
                self.verifier.check(self.model)
        except UnsupportedModel:
            raise
        except Exception as error:
            raise self._failure(step, error) from error
        seconds = time.perf_counter() - start
        rewrites, nodes = len(self.rewriter.applied) - before, sum(1 for _ in self.model.calls())
        self.report.passes.append(PassRun(phase, step.name, changes, rewrites, seconds, nodes))
        if changes:
            self.text = show(self.model)
            title = f"{step.name}: {changes} changes, {seconds * 1e3:.1f} ms"
            self._write(f"{self.count:03}-{step.name}.py", title)

    def _write(self, name: str, title: str) -> None:
        if self.dump is None:
            return
        self.dump.mkdir(parents=True, exist_ok=True)
        path = self.dump / name
        path.write_text(f"# {title}\n{self.text}", encoding="utf-8")
        self.report.dumps.append(str(path))

    def _failure(self, step: Pass, error: Exception) -> LlmcError:
        """The error with the way to reproduce it: of its own class when it is one of llmc's."""
        folder = self.dump or Path(tempfile.mkdtemp(prefix="llmc-"))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.count:03}-before-{step.name}.py"
        path.write_text(f"# the graph before {step.name}, which failed\n{self.text}", encoding="utf-8")
        what = str(error) if isinstance(error, LlmcError) else f"{type(error).__name__}: {error}"
        made = len(self.rewriter.applied)
        kind = type(error) if isinstance(error, LlmcError) else BuildFailed
        return kind(
            f"pass {step.name}: {what}; the graph before it is {path}; to reproduce, repeat the build with "
            f"LLMC_STOP_AFTER={made + 1} LLMC_DUMP={folder}"
        )
