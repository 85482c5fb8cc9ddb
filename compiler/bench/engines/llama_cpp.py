"""llama.cpp through the ctypes interface of llama-cpp-python: its defaults, which choose flash attention by themselves.

As in its own benchmark, `llama_decode` computes the logits of the last token; the cache is in f16.
"""

import ctypes
import time
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np

FILE_TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q4_k_m": 15, "bf16": 32}
"""llama_ftype by the name of the format."""
Q8_0 = 8
BATCH = 2048


class Engine:
    """One model in llama.cpp."""

    def __init__(self) -> None:
        """Silent: its log goes nowhere."""
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._context: Any = None
        self._sizes = (0, 0)
        self._cached: list[list[int]] = []

    def prepare(self, source: str, target: str, format: str) -> None:
        """Quantize the bfloat16 GGUF file `source` as `llama-quantize --token-embedding-type q8_0` does."""
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = FILE_TYPES[format]
        params.nthread = 2
        if format != "bf16":
            params.token_embedding_type = Q8_0
            params.output_tensor_type = Q8_0
        if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama_model_quantize failed on {source}")

    def load(self, model: str, threads: int) -> Mapping[str, object]:
        """Map the file (its default) and make a context for one sequence."""
        self._threads = threads
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._open(1, BATCH)
        return {"version": f"llama-cpp-python {llama_cpp.__version__}"}

    def run(self, prompts: Sequence[Sequence[int]], new: int, fresh: bool) -> tuple[float, list[float]]:
        """See `llmc.bench.worker.Engine`."""
        count, longest = len(prompts), max(map(len, prompts))
        self._open(count, longest + new)
        memory = llama_cpp.llama_get_memory(self._context)
        reuse = not fresh and self._cached == [list(prompt) for prompt in prompts]
        done = longest - 1 if reuse else 0
        llama_cpp.llama_memory_seq_rm(memory, -1, done, -1)
        began = time.perf_counter()
        entries = [(seq, at, prompt[at]) for seq, prompt in enumerate(prompts) for at in range(done, len(prompt))]
        tokens: list[int] = []
        rows: list[int] = []
        lasts = {(seq, len(prompt) - 1) for seq, prompt in enumerate(prompts)}
        for at in range(0, len(entries), BATCH):
            part = entries[at : at + BATCH]
            wanted = [(seq, position) in lasts for seq, position, _ in part]
            self._decode(part, wanted)
            rows = [row for row, last in enumerate(wanted) if last]
            tokens += [self._likeliest(row) for row in rows]
        first = time.perf_counter() - began
        steps = []
        for step in range(new - 1):
            began = time.perf_counter()
            self._decode([(seq, longest + step, token) for seq, token in enumerate(tokens)], [True] * count)
            tokens = [self._likeliest(seq) for seq in range(count)]
            steps.append(time.perf_counter() - began)
        self._cached = [list(prompt) for prompt in prompts]
        return first, steps

    def logits(self, tokens: Sequence[int]) -> Any:  # noqa: ANN401
        """See `llmc.bench.worker.Engine`."""
        self._open(1, len(tokens) + 1)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._cached = []
        out = []
        for at in range(0, len(tokens), BATCH):
            part = list(tokens[at : at + BATCH])
            self._decode([(0, at + place, token) for place, token in enumerate(part)], [True] * len(part))
            out += [np.array(self._row(row)) for row in range(len(part))]
        return np.stack(out).astype(np.float32)

    def _open(self, sequences: int, tokens: int) -> None:
        """A context of at least this size; the one that is there if it is large enough."""
        needed = -(-max(tokens, BATCH) // 256) * 256 if sequences == 1 else -(-tokens // 256) * 256
        if self._sizes[0] == sequences and self._sizes[1] >= needed:
            return
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = needed * sequences
        params.n_seq_max = sequences
        params.n_batch = BATCH
        params.n_threads = params.n_threads_batch = self._threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._sizes, self._cached = (sequences, needed), []
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def _decode(self, entries: Sequence[tuple[int, int, int]], wanted: Sequence[bool]) -> None:
        """One `llama_decode` of (sequence, position, token) with logits where `wanted`."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for row, (sequence, position, token) in enumerate(entries):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = wanted[row]
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")

    def _row(self, row: int) -> Any:  # noqa: ANN401
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,))

    def _likeliest(self, row: int) -> int:
        return int(np.argmax(self._row(row)))
