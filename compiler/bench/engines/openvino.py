"""OpenVINO GenAI's LLMPipeline: 4-bit weights, an 8-bit head, 8-bit activations and cache, which are its defaults.

Its paged attention (the default) shares common beginnings of prompts between calls, so `fresh` needs other prompts.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai


class Engine:
    """One model in OpenVINO GenAI."""

    def prepare(self, source: str, target: str, format: str) -> None:
        """`optimum-cli export openvino`, asymmetric, in groups that divide the width of the model."""
        tool = Path(sys.executable).with_name("optimum-cli")
        command = [str(tool), "export", "openvino", "--model", source, "--task", "text-generation-with-past"]
        bits, _, group = format.partition("-g")
        command += ["--weight-format", bits, *(["--group-size", group] if group else [])]
        if not (Path(source) / "tokenizer.json").exists():
            command.append("--disable-convert-tokenizer")
        subprocess.run([*command, target], check=True, stdout=sys.stderr)

    def load(self, model: str, threads: int) -> Mapping[str, object]:
        """Compile for latency on so many threads."""
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipe = openvino_genai.LLMPipeline(model, "CPU", **options)
        return {"version": f"openvino-genai {openvino_genai.__version__.split('-')[0]}"}

    def run(self, prompts: Sequence[Sequence[int]], new: int, fresh: bool) -> tuple[float, list[float]]:
        """See `llmc.bench.worker.Engine`; steps are timed by the library itself."""
        tokens = np.array(prompts, np.int64)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, False
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(tokens), openvino.Tensor(np.ones_like(tokens)))
        began = time.perf_counter()
        metrics = self._pipe.generate(inputs, config).perf_metrics
        total = time.perf_counter() - began
        first = metrics.get_ttft().mean / 1e3
        return first, [(total - first) / (new - 1)] * (new - 1) if new > 1 else []

    def logits(self, tokens: Sequence[int]) -> Any:  # noqa: ANN401
        """The pipeline gives none."""
        raise NotImplementedError
