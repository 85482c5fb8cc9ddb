"""A program that keeps tokens instead of keys and values and runs its source again for every step: right as it stands.

It shows that the checks accept what is right, and, with a fault built in, that they find what is wrong.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llmc.runtime.program import Batch
from llmc.zoo.oracle import logits_of

Fault = Callable[[list[int], int], list[int]]
"""Changes the tokens of a sequence, of which so many are new, before the source sees them."""


def no_fault(tokens: list[int], new: int) -> list[int]:
    return tokens


class RecomputedProgram:
    """The `Program` of a module, by whole forward passes over the tokens that its cache holds."""

    block_multiple = 1

    def __init__(self, module: nn.Module, fault: Fault = no_fault) -> None:
        self.module = module
        self.fault = fault
        self.cache = np.zeros(0, np.int64)
        self.block_size = 1

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self.cache = np.zeros(num_blocks * block_size, np.int64)
        self.block_size = block_size

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        self.cache[batch.slots] = batch.tokens
        logits = []
        for i, length in enumerate(batch.lengths.tolist()):
            new = int(batch.starts[i + 1] - batch.starts[i])
            assert batch.positions[batch.starts[i] : batch.starts[i + 1]].tolist() == list(range(length - new, length))
            places = np.arange(length)
            slots = batch.blocks[i, places // self.block_size] * self.block_size + places % self.block_size
            tokens = self.fault(self.cache[slots].tolist(), new)
            logits.append(logits_of(self.module, tokens)[-new:])
        return np.asarray(torch.cat(logits).numpy()[batch.rows], np.float32)

    def copy_block(self, source: int, target: int) -> None:
        size = self.block_size
        self.cache[target * size : target * size + size] = self.cache[source * size : source * size + size]
