"""What the runtime asks of a compiled program, whatever machine it runs on."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Batch:
    """The tokens of one step, of all its sequences, packed one after another without padding.

    T tokens in the step, B sequences, M blocks in the longest block table, R rows of logits asked for. The arrays are
    contiguous. A batch may come again with other numbers in its arrays, which never move.
    """

    tokens: npt.NDArray[np.int64]
    """[T] token ids, sequence after sequence."""
    positions: npt.NDArray[np.int64]
    """[T] position of each token in its own sequence, from 0."""
    slots: npt.NDArray[np.int64]
    """[T] where each token's K and V are stored: block * block_size + offset in the block."""
    starts: npt.NDArray[np.int64]
    """[B + 1] sequence b owns the tokens starts[b] to starts[b + 1] of this step; at least one each."""
    lengths: npt.NDArray[np.int64]
    """[B] tokens of sequence b in the cache once this step has written its own."""
    blocks: npt.NDArray[np.int64]
    """[B, M] block table: position p of sequence b lies in block blocks[b, p // block_size]; unused entries are 0."""
    rows: npt.NDArray[np.int64]
    """[R] the tokens of this step (indices into T) whose logits are wanted."""


@dataclass(frozen=True)
class CacheSpec:
    """The K and V cache of one attention layer: [blocks, block_size, heads, key_size] and [..., value_size]."""

    heads: int
    key_size: int
    value_size: int
    dtype: str
    """How they are stored: "float32", "float16", "bfloat16", or with a scale for each head "int8" or "fp8" (e4m3)."""

    @property
    def token_bytes(self) -> int:
        """Bytes that K and V of one token take, without what a program may pad them with."""
        item, scale = _STORED_BYTES[self.dtype]
        return self.heads * ((self.key_size + self.value_size) * item + 2 * scale)


_STORED_BYTES = {
    "float64": (8, 0), "float32": (4, 0), "float16": (2, 0), "bfloat16": (2, 0), "int8": (1, 2), "fp8": (1, 2),
}  # fmt: skip
"""Bytes of an element, and of the scale that a key or value of a head has beside its elements."""


class Program(Protocol):
    """A compiled model, ready to run on this machine. It owns the memory of the cache; the runtime owns its map."""

    block_multiple: int
    """Blocks of the cache hold a multiple of so many tokens."""

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Set aside zeroed cache memory for `num_blocks` blocks of `block_size` tokens in every layer."""

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Run one step, write its K and V into the cache, and return the logits asked for, [R, V].

        The next step may overwrite them: whoever wants to keep them copies them.
        """

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block of every layer's cache onto another (copy on write)."""
