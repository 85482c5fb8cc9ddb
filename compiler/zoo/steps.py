"""Drive a compiled program step by step, with a block map of its own: an outside view of the packed-token form.

Blocks are small and handed out in a scattered order, so that sequences cross block edges and no two neighbours in a
block table are neighbours in memory.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from llmc.runtime.program import Batch, Program

BLOCK_SIZE = 4
"""Tokens in a block, or the fewest that the program has blocks for."""
NUM_BLOCKS = 29
_STRIDE = 11
"""Block b of the order of handing out is b * _STRIDE % NUM_BLOCKS; the two have no common divisor."""


class Driver:
    """Feeds tokens of named sequences to a program and keeps where each of their keys and values went."""

    def __init__(self, program: Program) -> None:
        """Allocate a small cache in `program`; what it held is lost."""
        self._size = math.lcm(BLOCK_SIZE, program.block_multiple)
        program.allocate(NUM_BLOCKS, self._size)
        self._program = program
        self._tables: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}
        self._handed_out = 0

    def step(self, pieces: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
        """Run the next tokens of each sequence in one step and return the logits of all of them, [tokens, V] each."""
        batch = self._batch(pieces)
        logits = torch.from_numpy(np.array(self._program.step(batch), dtype=np.float32))
        starts = batch.starts.tolist()
        return {name: logits[starts[i] : starts[i + 1]] for i, name in enumerate(pieces)}

    def _batch(self, pieces: Mapping[str, Sequence[int]]) -> Batch:
        positions: list[int] = []
        slots: list[int] = []
        for name, tokens in pieces.items():
            begin = self._lengths.get(name, 0)
            self._lengths[name] = begin + len(tokens)
            table = self._tables.setdefault(name, [])
            while len(table) * self._size < self._lengths[name]:
                table.append(self._handed_out * _STRIDE % NUM_BLOCKS)
                self._handed_out += 1
            assert self._handed_out <= NUM_BLOCKS, "the sequences of a check fit into the cache"
            reach = range(begin, self._lengths[name])
            positions.extend(reach)
            slots.extend(table[p // self._size] * self._size + p % self._size for p in reach)
        tables = [self._tables[name] for name in pieces]
        blocks = np.zeros((len(tables), max(map(len, tables))), np.int64)
        for row, table in zip(blocks, tables, strict=True):
            row[: len(table)] = table
        sizes = [len(tokens) for tokens in pieces.values()]
        return Batch(
            tokens=np.array([token for tokens in pieces.values() for token in tokens], np.int64),
            positions=np.array(positions, np.int64),
            slots=np.array(slots, np.int64),
            starts=np.cumsum([0, *sizes], dtype=np.int64),
            lengths=np.array([self._lengths[name] for name in pieces], np.int64),
            blocks=blocks,
            rows=np.arange(sum(sizes), dtype=np.int64),
        )


def cut(tokens: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Cut `tokens` into pieces of the given sizes; what remains is the last piece."""
    edges = np.cumsum([0, *sizes]).tolist()
    return [list(tokens[a:b]) for a, b in zip(edges, [*edges[1:], len(tokens)], strict=True) if tokens[a:b]]


def run_in_pieces(program: Program, tokens: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """Logits [S, V] of one sequence fed in pieces of the given sizes, the rest at once."""
    driver = Driver(program)
    return torch.cat([driver.step({"only": piece})["only"] for piece in cut(tokens, sizes)])
