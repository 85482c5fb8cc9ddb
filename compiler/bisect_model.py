"""`llmc bisect`: the first rewrite that makes a whole model compute something else than its source."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import fx, nn

from llmc.bisect import first_bad_rewrite
from llmc.compare import Expected, graph_logits, source_module
from llmc.frontend.lengths import SHORTEST
from llmc.frontend.read import read
from llmc.ir.model import Model
from llmc.ir.pass_manager import Pass, Progress, run_passes
from llmc.ir.rewrite import Applied
from llmc.pipeline import pipeline
from llmc.threshold import Threshold


@dataclass(frozen=True)
class Bisection:
    """What a search for a bad rewrite found."""

    first_bad: Applied | None
    """None if the model is right with all rewrites."""
    rewrites: int
    """Rewrites that the whole pipeline makes."""
    builds: int
    """How often the model was compiled."""


def bisect_model(
    model: str,
    *,
    dtype: str | None = None,
    check: Threshold | None = None,
    phases: Mapping[str, Sequence[Pass]] | None = None,
    progress: Progress | None = None,
) -> Bisection:
    """Compile `model` with ever fewer rewrites, unproved, and compare each with the source.

    A graph runs after any number of rewrites: whole sequences until it has a cache, packed steps then.

    Args:
        model: a Hugging Face directory or a .gguf file.
        dtype: what to compute in; as for a build.
        check: what a good build meets; the numbers promise when None.
        phases: those of the pipeline when None.
        progress: told of each build and of its verdict.

    Raises BuildFailed if the model is wrong before any rewrite, and what reading the model raises.
    """
    source = read(model, None if dtype is None else getattr(torch, dtype)).model
    largest = builds = 0
    expected: Expected | None = None

    def build(limit: int | None) -> tuple[Model, Sequence[Applied]]:
        nonlocal largest, builds, expected
        began = time.perf_counter()
        compiled = _copy(source)
        if expected is None:
            expected = _expected(model, compiled)
        report = run_passes(compiled, phases or pipeline(), stop_after=limit, prove=False)
        largest, builds = max(largest, len(report.applied)), builds + 1
        if progress is not None:
            progress("build", time.perf_counter() - began, {"rewrites": len(report.applied)})
        return compiled, report.applied

    def is_good(compiled: Model) -> bool:
        assert expected is not None, "a model is built before it is judged"
        found = expected.compare(graph_logits(compiled))
        good = found.passed if check is None else check.met(found)
        if progress is not None:
            progress("good" if good else "bad", 0.0, {"error": found.error, "largest": found.largest})
        return good

    bad = first_bad_rewrite(build, is_good)
    return Bisection(bad, largest, builds)


def _copy(model: Model) -> Model:
    """The model as it was read, for passes to change."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(model.graph, {}))
    return Model(fx.GraphModule(nn.Module(), graph), dict(model.weights), dict(model.info))


def _expected(model: str, compiled: Model) -> Expected:
    """What the source of `model` computes, in the dtype of the graph's logits."""
    logits = compiled.graph.output_node().all_input_nodes[0].meta["val"]
    limit, shortest = compiled.info.get("max_positions"), compiled.info.get(SHORTEST, 1)
    assert isinstance(shortest, int), "the reader says a number"
    return Expected.of(
        partial(source_module, model),
        logits.dtype,
        int(logits.shape[-1]),
        limit if isinstance(limit, int) else None,
        shortest,
    )
