"""An artifact whose program is the tiny one of tiny_gpu_program.py, with code for the fake driver."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import tiny_gpu_program
from support.native_artifact import GRAPH, tokenizer_json
from support.small_artifact import FACTS
from support.tiny_gpu_program import PLAN, V

from llmc.runtime.artifact_writer import ArtifactWriter
from llmc.runtime.cuda.plan_file import Binary, to_json

CODE = b"not code" + b"fake" * len(PLAN.kernels)
BINARIES = {
    kernel.name: Binary(kernel.name, 8 + 4 * place, 4, 0, 32) for place, kernel in enumerate(PLAN.kernels)
}  # fmt: skip
PTX = {name: Binary(binary.symbol, 8, 4, 0, 32) for name, binary in BINARIES.items()}


def facts() -> dict[str, Any]:
    made = copy.deepcopy(FACTS)
    made["model"] = {"vocab_size": V, "max_positions": 64, "eos_token_ids": [], "bos_token_id": None}
    made["ranges"] = {"tokens": [1, 64], "sequences": [1, 4], "context": [1, 64]}
    made["kv"] = {"layers": [{"heads": 1, "key_size": 1, "value_size": 1, "dtype": "float32"}]}
    return made


def write(
    path: Path,
    *,
    targets: tuple[str, ...] = ("sm_90",),
    ptx: tuple[str, ...] = (),
    alter: Callable[[dict[str, Any]], object] = lambda plain: None,
) -> Path:
    """Write it for some targets, of which `ptx` carry PTX; `alter` changes each plan as it is written."""
    described = facts()
    described["programs"] = {"reference": {"graph": "program/graph.json"}, "cuda": {}}
    with ArtifactWriter(path) as writer:
        writer.add_bytes("program/graph.json", GRAPH)
        for target in targets:
            plan = json.loads(json.dumps(to_json(PLAN, BINARIES, PTX if target in ptx else {}, {"triton": "3.9.0"})))
            plan["plan"]["target"] = target
            alter(plan)
            contents = {
                "json": json.dumps(plan, sort_keys=True).encode(),
                "bin": CODE,
                "py": tiny_gpu_program.TEXT.encode(),
            }
            for suffix, content in contents.items():
                name = f"program/cuda-{target}.{suffix}"
                writer.add_bytes(name, content)
                described["programs"]["cuda"][target if suffix == "json" else f"{target}.{suffix}"] = name
        writer.add_bytes("tokenizer/tokenizer.json", tokenizer_json())
        arrays = tiny_gpu_program.weights()
        header = {name: ("float32", array.shape) for name, array in arrays.items()}
        with writer.open_weights(header) as weights:
            for name, array in arrays.items():
                weights.write(name, array)
        writer.publish(described)
    return path
