"""A small transformer in numpy that implements the Program protocol for real: rotary positions, grouped heads, paged
cache. It computes each token by itself, so its results do not depend on what else is in the batch, bit for bit; and it
reads nothing but what the block tables say, so that a wrong slot, table or copy changes its logits."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llmc.runtime.program import Batch

Array = npt.NDArray[np.float32]
VOCABULARY, WIDTH, LAYERS, HEADS, KEY_HEADS, HEAD = 50, 16, 2, 4, 2, 4


def rotate(x: Array, position: int) -> Array:
    """Rotate x [..., HEAD] by its position."""
    angle = position * np.array([1.0, 0.1], np.float32)
    first, second = x[..., :2], x[..., 2:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(np.float32)


@dataclass
class NumpyProgram:
    """The program; `steps` and `copied` record what was asked of it."""

    seed: int = 3
    steps: list[Batch] = field(default_factory=list)
    copied: list[tuple[int, int]] = field(default_factory=list)
    allocated: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = np.random.Generator(np.random.PCG64(self.seed))

        def matrix(*shape: int) -> Array:
            return random.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-1]))

        self.embed = matrix(VOCABULARY, WIDTH) * 4
        self.q = [matrix(HEADS * HEAD, WIDTH) for _ in range(LAYERS)]
        self.k = [matrix(KEY_HEADS * HEAD, WIDTH) for _ in range(LAYERS)]
        self.v = [matrix(KEY_HEADS * HEAD, WIDTH) for _ in range(LAYERS)]
        self.o = [matrix(WIDTH, HEADS * HEAD) for _ in range(LAYERS)]
        self.head = matrix(VOCABULARY, WIDTH) * 4

    block_multiple = 1

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.allocated.append(num_blocks)
        self.cache = np.zeros((2, LAYERS, num_blocks, block_size, KEY_HEADS, HEAD), np.float32)

    def copy_block(self, source: int, target: int) -> None:
        self.copied.append((source, target))
        self.cache[:, :, target] = self.cache[:, :, source]

    def step(self, batch: Batch) -> Array:
        self.check(batch)
        self.steps.append(batch)
        hidden = [self.embed[token] for token in batch.tokens]
        owner = np.repeat(np.arange(len(batch.lengths)), np.diff(batch.starts))
        for layer in range(LAYERS):
            for at, (position, slot) in enumerate(zip(batch.positions, batch.slots, strict=True)):
                place = layer, slot // self.block_size, slot % self.block_size
                self.cache[(0, *place)] = rotate((self.k[layer] @ hidden[at]).reshape(KEY_HEADS, HEAD), int(position))
                self.cache[(1, *place)] = (self.v[layer] @ hidden[at]).reshape(KEY_HEADS, HEAD)
            for at, position in enumerate(batch.positions):
                seen = np.arange(position + 1)
                place = layer, batch.blocks[owner[at]][seen // self.block_size], seen % self.block_size
                query = rotate((self.q[layer] @ hidden[at]).reshape(HEADS, HEAD), int(position))
                mixed = attend(query, self.cache[(0, *place)], self.cache[(1, *place)])
                hidden[at] = hidden[at] + np.tanh(self.o[layer] @ mixed)
        return np.stack([self.head @ np.tanh(hidden[row]) for row in batch.rows])

    def check(self, batch: Batch) -> None:
        """What the protocol promises of every batch."""
        tokens, sequences = len(batch.tokens), len(batch.lengths)
        assert batch.positions.shape == batch.slots.shape == (tokens,)
        assert batch.starts.shape == (sequences + 1,)
        assert batch.starts[0] == 0 and batch.starts[-1] == tokens
        assert (np.diff(batch.starts) >= 1).all()
        assert len(batch.rows) >= 1 and (batch.rows < tokens).all()
        assert len(set(batch.slots.tolist())) == tokens, "two tokens share a slot"
        assert batch.blocks.shape == (sequences, -(-int(batch.lengths.max()) // self.block_size))
        for sequence in range(sequences):
            own = slice(batch.starts[sequence], batch.starts[sequence + 1])
            positions = batch.positions[own]
            assert positions[-1] + 1 == batch.lengths[sequence]
            assert (np.diff(positions) == 1).all()
            expected = batch.blocks[sequence][positions // self.block_size] * self.block_size
            assert (batch.slots[own] == expected + positions % self.block_size).all()


def attend(query: Array, keys: Array, values: Array) -> Array:
    """query [HEADS, HEAD], keys and values [K, KEY_HEADS, HEAD] -> [HEADS * HEAD]."""
    out = []
    for head in range(HEADS):
        shared = head // (HEADS // KEY_HEADS)
        scores = np.ascontiguousarray(keys[:, shared]) @ query[head] * np.float32(HEAD**-0.5)
        weights = np.exp(scores - scores.max())
        out.append(weights @ np.ascontiguousarray(values[:, shared]) / weights.sum())
    return np.concatenate(out)


def dense_logits(program: NumpyProgram, tokens: list[int]) -> npt.NDArray[np.float64]:
    """[T, V] logits of a whole sequence, by another way: dense matrices in float64, no cache."""
    count = len(tokens)
    x = program.embed[tokens].astype(np.float64)
    causal = np.tril(np.ones((count, count), bool))
    for layer in range(LAYERS):
        q = (x @ program.q[layer].T).reshape(count, HEADS, HEAD)
        k = (x @ program.k[layer].T).reshape(count, KEY_HEADS, HEAD)
        v = (x @ program.v[layer].T).reshape(count, KEY_HEADS, HEAD).repeat(HEADS // KEY_HEADS, 1)
        q = np.stack([rotate(row, at) for at, row in enumerate(q)])
        k = np.stack([rotate(row, at) for at, row in enumerate(k)]).repeat(HEADS // KEY_HEADS, 1)
        scores = np.where(causal, np.einsum("qhd,khd->hqk", q, k) * HEAD**-0.5, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.tanh(np.einsum("hqk,khd->qhd", weights, v).reshape(count, -1) @ program.o[layer].T)
    return np.tanh(x) @ program.head.T
