"""ONNX Runtime GenAI: weights in 4-bit blocks of 32 with 8-bit activations (accuracy level 4), by its model builder."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime_genai


class Engine:
    """One model in ONNX Runtime GenAI."""

    def __init__(self) -> None:
        """No sequence yet."""
        self._generator: Any = None
        self._cached: list[list[int]] = []

    def prepare(self, source: str, target: str, format: str) -> None:
        """Its model builder; 8-bit formats are int4's blocks with 8 bits."""
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", target]
            command += ["-p", format, "-e", "cpu", "-c", cache, "--extra_options", "int4_accuracy_level=4"]
            subprocess.run(command, check=True, stdout=sys.stderr)

    def load(self, model: str, threads: int) -> Mapping[str, object]:
        """On so many threads; the rest as the model builder configured it."""
        config = onnxruntime_genai.Config(model)
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        return {"version": f"onnxruntime-genai {onnxruntime_genai.__version__}"}

    def run(self, prompts: Sequence[Sequence[int]], new: int, fresh: bool) -> tuple[float, list[float]]:
        """See `llmc.bench.worker.Engine`."""
        given = [list(prompt) for prompt in prompts]
        longest = len(given[0]) + new
        if not fresh and self._generator is not None and given == self._cached:
            generator = self._generator
            generator.rewind_to(len(given[0]) - 1)
            wanted = [prompt[-1:] for prompt in given]
        else:
            generator, wanted = self._open(len(given), longest), given
        began = time.perf_counter()
        generator.append_tokens(np.array(wanted, np.int32))
        generator.generate_next_token()
        first = time.perf_counter() - began
        steps = []
        for _ in range(new - 1):
            began = time.perf_counter()
            generator.generate_next_token()
            steps.append(time.perf_counter() - began)
        self._generator, self._cached = (generator, given) if len(given) == 1 else (None, [])
        return first, steps

    def logits(self, tokens: Sequence[int]) -> Any:  # noqa: ANN401
        """See `llmc.bench.worker.Engine`: token by token, as it gives the logits of the last one only."""
        generator = self._open(1, len(tokens) + 1)
        rows = []
        for token in tokens:
            generator.append_tokens(np.array([[token]], np.int32))
            rows.append(np.array(generator.get_logits()).reshape(-1))
        return np.stack(rows).astype(np.float32)

    def _open(self, sequences: int, longest: int) -> Any:  # noqa: ANN401
        self._generator = None
        params = onnxruntime_genai.GeneratorParams(self._model)
        params.set_search_options(max_length=longest, min_length=longest, batch_size=sequences, do_sample=False)
        return onnxruntime_genai.Generator(self._model, params)
