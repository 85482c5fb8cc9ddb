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

    def __init__(self) -> None:
        """No request yet."""
        self._request: Any = None

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
        self._model = Path(model)
        self._options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipe = openvino_genai.LLMPipeline(model, "CPU", **self._options)
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
        """See `llmc.bench.worker.Engine`: by the same model without the pipeline, which keeps the last row only."""
        if self._request is None:
            model = openvino.Core().compile_model(self._model / "openvino_model.xml", "CPU", self._options)
            self._request = model.create_infer_request()
        self._request.reset_state()
        count = len(tokens)
        given = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for port in self._request.model_inputs for name in port.names}
        self._request.infer({name: value for name, value in given.items() if name in names})
        return np.array(self._request.get_tensor("logits").data, np.float32)[0]
