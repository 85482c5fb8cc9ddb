"""The process in which one engine is measured: `python -P worker.py ENGINE_FILE`, one JSON request a line.

This file and those of the engines run in the Python where the engine is installed, so they import nothing of llmc (that
of llmc itself excepted). Requests come by stdin; replies go to what was stdout at the start, since libraries print.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """What the file of an engine defines under this name."""

    def load(self, model: str, threads: int) -> Mapping[str, object]:
        """Make `model` ready on so many threads; returns at least its "version"."""

    def prepare(self, source: str, target: str, format: str) -> None:
        """Write the Hugging Face directory `source` as `target` in the engine's own format."""

    def run(self, prompts: Sequence[Sequence[int]], new: int, fresh: bool) -> tuple[float, list[float]]:
        """Continue each prompt by `new` tokens, the likeliest ones.

        Returns seconds: until each prompt has its first token, and of each of the new - 1 steps after it. `fresh`
        starts with an empty cache; otherwise what the cache holds of these prompts since the last call may be used.
        """

    def logits(self, tokens: Sequence[int]) -> Any:  # noqa: ANN401  -- a numpy array; numpy is not imported here
        """[T, V] logits after each of `tokens` as a float32 array; NotImplementedError if the engine gives none."""


def peak_rss() -> int:
    """Most bytes of memory that this process ever had resident, files that it maps included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def answer(engine: Engine, request: Mapping[str, Any]) -> dict[str, object]:
    """Do what one request asks for."""
    began = time.perf_counter()
    match request["do"]:
        case "load":
            facts = engine.load(request["model"], request["threads"])
            return {"seconds": time.perf_counter() - began, "facts": dict(facts)}
        case "prepare":
            engine.prepare(request["source"], request["target"], request["format"])
            return {"seconds": time.perf_counter() - began}
        case "run":
            first, steps = engine.run(request["prompts"], request["new"], request["fresh"])
            return {"first": first, "steps": steps, "peak_rss": peak_rss()}
        case "logits":
            values = engine.logits(request["tokens"])
            values.tofile(request["file"])
            return {"shape": list(values.shape)}
        case other:
            raise ValueError(f"no such request: {other}")


def open_engine(file: str) -> Engine:
    """The engine that `file` defines."""
    spec = importlib.util.spec_from_file_location("engine", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    engine: Engine = module.Engine()
    return engine


def serve(file: str) -> None:
    """Answer requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        try:
            began = time.perf_counter()
            engine = engine or open_engine(file)
            opened = time.perf_counter() - began
            reply = {**answer(engine, json.loads(line)), "import_seconds": opened}
        except Exception as error:  # whatever an engine raises is an answer: it is told to who asked
            reply = {"error": type(error).__name__, "message": str(error), "module": getattr(error, "name", None)}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    serve(sys.argv[1])
