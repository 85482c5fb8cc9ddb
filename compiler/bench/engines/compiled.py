"""llmc itself: steps of the artifact's program, packed as the token loop packs them, the likeliest token between."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import llmc
from llmc.runtime.batch import Packer, Piece, Rows
from llmc.runtime.generate import logits_of, run_step
from llmc.runtime.kv_cache import BlockPool, BlockTable
from llmc.runtime.session import BLOCK_SIZE


class Engine:
    """One artifact."""

    def __init__(self) -> None:
        """No cache yet."""
        self._pool: BlockPool | None = None
        self._packer = Packer()
        self._tables: list[BlockTable] = []
        self._cached: list[list[int]] = []

    def prepare(self, source: str, target: str, format: str) -> None:
        """Artifacts are made by `llmc build`."""
        raise NotImplementedError

    def load(self, model: str, threads: int) -> Mapping[str, object]:
        """As `llmc.load` does it."""
        loaded = llmc.load(model, threads=threads)
        self._session = loaded.session
        found = loaded.report.get("program")
        share = found.get("native", 1.0) if isinstance(found, dict) else 1.0
        program = type(self._session.program).__name__
        if program == "CpuProgram" and share < 1:
            program += f", {share:.1%} native"
        return {"version": f"llmc {llmc.__version__}", "program": program}

    def run(self, prompts: Sequence[Sequence[int]], new: int, fresh: bool) -> tuple[float, list[float]]:
        """See `llmc.bench.worker.Engine`."""
        given = [list(prompt) for prompt in prompts]
        if not fresh and given == self._cached:
            for table, prompt in zip(self._tables, given, strict=True):
                table.truncate(len(prompt) - 1)
        else:
            self._open(len(given), max(map(len, given)) + new)
        began = time.perf_counter()
        tokens = self._prefill(given)
        first = time.perf_counter() - began
        steps = []
        for _ in range(new - 1):
            began = time.perf_counter()
            tokens = self._step([[token] for token in tokens], "last")
            steps.append(time.perf_counter() - began)
        self._cached = given
        return first, steps

    def logits(self, tokens: Sequence[int]) -> Any:  # noqa: ANN401
        """See `llmc.bench.worker.Engine`."""
        self._open(1, len(tokens))
        assert self._pool is not None
        return logits_of(tokens, self._session.program, self._pool, self._session.ranges.tokens)

    def _open(self, sequences: int, tokens: int) -> None:
        """Empty tables in a cache that holds so many tokens of each sequence."""
        for table in self._tables:
            table.release()
        needed = sequences * -(-tokens // BLOCK_SIZE)
        if self._pool is None or self._pool.num_blocks < needed:
            self._session.program.allocate(needed, BLOCK_SIZE)
            self._pool = BlockPool(needed, BLOCK_SIZE)
        self._tables, self._cached = [BlockTable(self._pool) for _ in range(sequences)], []

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Put in what each table lacks of its prompt, in steps no longer than the artifact serves."""
        most = max(1, self._session.ranges.tokens // len(prompts))
        rest = [list(prompt[table.length :]) for table, prompt in zip(self._tables, prompts, strict=True)]
        while max(map(len, rest)) > most:
            self._step([tokens[:most] for tokens in rest], "none")
            rest = [tokens[most:] for tokens in rest]
        return self._step(rest, "last")

    def _step(self, tokens: Sequence[Sequence[int]], rows: Rows) -> list[int]:
        packed = self._packer.pack([Piece(part, table, rows) for part, table in zip(tokens, self._tables, strict=True)])
        logits = run_step(self._session.program, packed)
        return [int(row) for row in np.argmax(logits, axis=-1)]
