"""A compiled model to an artifact directory, one weight in memory at a time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import llmc
from llmc.codegen.torch_calls import write_calls
from llmc.frontend.read import Origin
from llmc.frontend.tokenizer import TokenizerFiles
from llmc.gpu import GpuPrograms
from llmc.ir.model import Model
from llmc.ir.serialize import save_graph
from llmc.ir.weights import evaluate_each
from llmc.native import NativeProgram
from llmc.runtime.artifact_writer import ArtifactWriter
from llmc.runtime.checked_json import canonical
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.open_program import TORCH
from llmc.runtime.program import CacheSpec

_BYTES = torch.uint8
GRAPH = "program/graph.json"
SOURCE = "program/cpu.cpp"
EXPLANATION = "program/cpu.json"
TORCH_CALLS = "program/torch.json"


@dataclass(frozen=True)
class Build:
    """Everything that goes into an artifact."""

    model: Model
    source: Origin
    facts: ModelFacts
    ranges: Ranges
    tokenizer: TokenizerFiles | None
    options: dict[str, object]
    report: dict[str, object]
    caches: Sequence[CacheSpec]
    native: NativeProgram | None
    """None where there is no native program for CPUs."""
    gpu: GpuPrograms | None
    """None where there is no program for GPUs."""


def save(build: Build, directory: Path, *, force: bool) -> Path:
    """Write `build` to `directory`, atomically; equal builds with equal compilers give equal bytes."""
    graph = save_graph(build.model.graph_module, build.model.weights)
    programs = {"reference": {"graph": GRAPH}}
    libraries = build.native.compile() if build.native is not None else {}
    kernels = build.gpu.files(build.model) if build.gpu is not None else {}
    with ArtifactWriter(directory, replace=force) as writer:
        writer.add_bytes(GRAPH, graph)
        if build.native is not None:
            programs["cpu"] = {
                "source": SOURCE,
                "explanation": EXPLANATION,
                **{level: f"program/cpu-{level}.so" for level in libraries},
            }
            writer.add_bytes(SOURCE, build.native.source.text.encode())
            writer.add_bytes(EXPLANATION, canonical(build.native.explain(build.model).to_json()))
            if build.native.source.torch:
                programs["cpu"][TORCH] = TORCH_CALLS
                writer.add_bytes(TORCH_CALLS, write_calls(build.native.source.torch))
        for level, library in libraries.items():
            writer.add_file(programs["cpu"][level], library.path)
        for role, (name, content) in kernels.items():
            programs.setdefault("cuda", {})[role] = name
            writer.add_bytes(name, content)
        if build.tokenizer is not None:
            for name, content in build.tokenizer.contents().items():
                writer.add_bytes(f"tokenizer/{name}", content)
        header = {
            name: (str(weight.dtype).removeprefix("torch."), weight.shape)
            for name, weight in build.model.weights.items()
        }
        with writer.open_weights(header) as weights:
            for name, value in evaluate_each(build.model.weights):
                tensor = value.contiguous()
                weights.write(name, tensor.reshape(-1).view(dtype=_BYTES).numpy())
        writer.publish(_facts(build, programs))
    return directory


def _facts(build: Build, programs: dict[str, dict[str, str]]) -> dict[str, object]:
    report = build.report
    return {
        "llmc_version": llmc.__version__,
        "source": asdict(build.source),
        "model": {**asdict(build.facts), "eos_token_ids": list(build.facts.eos_token_ids)},
        "options": build.options,
        "ranges": {name: [1, value] for name, value in asdict(build.ranges).items()},
        "kv": {"layers": [asdict(cache) for cache in build.caches]},
        "programs": programs,
        "passes": [{"name": done["name"], "changes": done["changes"]} for done in _records(report["passes"])],
        "rewrites": [
            {"number": done["number"], "rule": done["rule"], "origin": done["origin"], "error": done["error"]}
            for done in _records(report["rewrites"])
        ],
        "report": {name: report[name] for name in ("refused", "ops", "masks", "lengths", "program", "gpu")},
    }


def _records(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list), f"expected a list of records, got {type(value).__name__}"
    return value
