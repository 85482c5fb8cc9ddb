"""An artifact whose program is the tiny one of tiny_gpu_program.py, with code for the fake driver."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support import tiny_gpu_program
from support.native_artifact import GRAPH, tokenizer_json
from support.small_artifact import FACTS
from support.tiny_gpu_program import PLAN, V

from llmc.runtime.artifact_writer import ArtifactWriter
from llmc.runtime.cuda.cuda_device import Image
from llmc.runtime.cuda.plan import Plan
from llmc.runtime.cuda.plan_file import write_plan

COMPILER = {"triton": "3.9.0"}


def images(plan: Plan = PLAN) -> dict[str, Image]:
    """Code of each kernel that the fake driver takes."""
    return {kernel.name: Image(b"fake", kernel.name, 0, 32) for kernel in plan.kernels}


CODE = write_plan(PLAN, images(), {}, COMPILER)[1]
"""The file of code of a target without PTX."""


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
    plan: Plan = PLAN,
    code: Mapping[str, Image] | None = None,
) -> Path:
    """Write it for some targets, of which `ptx` carry PTX; `alter` changes the document of each plan as it is written.

    `plan` and `code` are another program that computes the same, and its kernels.
    """
    described = facts()
    described["programs"] = {"reference": {"graph": "program/graph.json"}, "cuda": {}}
    with ArtifactWriter(path) as writer:
        writer.add_bytes("program/graph.json", GRAPH)
        for target in targets:
            kernels = images() if code is None else code
            document, packed = write_plan(plan, kernels, kernels if target in ptx else {}, COMPILER)
            plain = json.loads(document)
            plain["target"] = target
            alter(plain)
            contents = {
                "json": json.dumps(plain).encode(),
                "bin": packed,
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
