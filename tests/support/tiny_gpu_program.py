"""A GPU program written by hand: what a plan can say, in four small kernels, and what it computes.

The cache of its one layer keeps the number of every token. The logits after a token are its row of a table, which is
stored in halves, plus a scale times the sum of the numbers of all tokens of its sequence so far.
"""

import dataclasses

import numpy as np

from llmc.runtime.cuda.plan import (
    ALWAYS,
    ONE,
    Argument,
    Cache,
    Extent,
    Kernel,
    Launch,
    Plan,
    Rearrangement,
    When,
    Workspace,
)
from llmc.runtime.program import Batch

V, BLOCK, CONTEXT = 7, 16, 64
STEPS = 8

TEXT = f'''"""Kernels of the tiny program."""

import triton
import triton.language as tl


@triton.jit
def halves_0(source, target):
    """The columns of a matrix, of which even and odd ones are stored apart, in order."""
    row = tl.program_id(0)
    half = tl.arange(0, 4)
    even = tl.load(source + row * 8 + half)
    odd = tl.load(source + row * 8 + 4 + half)
    tl.store(target + row * 8 + half * 2, even)
    tl.store(target + row * 8 + half * 2 + 1, odd)


@triton.jit
def write_0(tokens, slots, k_cache):
    """The cache keeps the number of each token."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    tl.store(k_cache + slot, tl.load(tokens + row).to(tl.float32))


@triton.jit
def sum_0(positions, starts, blocks, k_cache, sums, total, T, B, M):
    """For each token the sum over its sequence, and in a workspace the tokens of all steps."""
    row = tl.program_id(0)
    sequence = 0
    for other in range(1, B):
        sequence += (tl.load(starts + other) <= row).to(tl.int32)
    place = tl.arange(0, {CONTEXT})
    seen = place <= tl.load(positions + row)
    block = tl.load(blocks + sequence * M + place // {BLOCK}, mask=seen, other=0)
    values = tl.load(k_cache + block * {BLOCK} + place % {BLOCK}, mask=seen, other=0.0)
    tl.store(sums + row, tl.sum(values))
    if row == 0:
        tl.store(total, tl.load(total) + T)


@triton.jit
def logits_0(tokens, rows, table, scale, sums, logits):
    """The rows of logits that are wanted."""
    row = tl.program_id(0)
    at = tl.load(rows + row)
    column = tl.arange(0, 8)
    inside = column < {V}
    values = tl.load(table + tl.load(tokens + at) * 8 + column, mask=inside, other=0.0)
    factor = tl.load(scale + column, mask=inside, other=0.0)
    tl.store(logits + row * {V} + column, values + factor * tl.load(sums + at), mask=inside)


@triton.jit
def choose_0(
    logits, tokens, positions, slots, lengths, blocks, temperatures, uniforms, ends, remaining, made, chosen, M
):
    """The next token of each sequence: the likeliest, or drawn at a temperature."""
    row = tl.program_id(0)
    left = tl.load(remaining + row)
    if left > 0:
        column = tl.arange(0, 8)
        values = tl.load(logits + row * {V} + column, mask=column < {V}, other=float("-inf")).to(tl.float64)
        highest = tl.max(values, 0)
        token = tl.min(tl.where(values == highest, column, {V}), 0)
        temperature = tl.load(temperatures + row).to(tl.float64, bitcast=True)
        count = tl.load(made + row)
        if temperature > 0:
            total = tl.cumsum(tl.exp((values - highest) / temperature), 0)
            uniform = tl.load(uniforms + row * {STEPS} + count).to(tl.float64, bitcast=True)
            token = tl.minimum(tl.sum((total <= uniform * tl.max(total, 0)).to(tl.int32), 0), {V} - 1)
        if highest - highest != 0:  # infinite
            tl.store(chosen + row * {STEPS} + count, -2)
            tl.store(remaining + row, 0)
        else:
            tl.store(chosen + row * {STEPS} + count, token)
            tl.store(made + row, count + 1)
            end = tl.load(ends + row * 8 + column)
            left = tl.where(tl.sum((end == token).to(tl.int32), 0) > 0, 0, left - 1)
            tl.store(remaining + row, left)
            if left > 0:
                position = tl.load(positions + row) + 1
                tl.store(tokens + row, token)
                tl.store(positions + row, position)
                tl.store(lengths + row, position + 1)
                block = tl.load(blocks + row * M + position // {BLOCK})
                tl.store(slots + row, block * {BLOCK} + position % {BLOCK})
'''


def _step(name: str) -> Argument:
    return Argument("step", name)


def _kernel(name: str, *parameters: tuple[str, str]) -> Kernel:
    return Kernel(name, parameters, warps=1, stages=1, pdl=False)


def _integers(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "*i64") for name in names)


def _launch(kernel: str, extent: Extent, *arguments: Argument, when: When = ALWAYS) -> Launch:
    return Launch(kernel, (extent, ONE, ONE), arguments, when, 0)


SUMS = Argument("arena", number=64)
CACHE = Argument("cache", "k", 0)

PLAN = Plan(
    target="sm_90",
    kernels=(
        _kernel("halves_0", ("source", "*fp32"), ("target", "*fp32")),
        _kernel("write_0", *_integers("tokens", "slots"), ("k_cache", "*fp32")),
        _kernel(
            "sum_0",
            *_integers("positions", "starts", "blocks"),
            ("k_cache", "*fp32"),
            ("sums", "*fp32"),
            ("total", "*i64"),
            ("T", "i32"),
            ("B", "i32"),
            ("M", "i32"),
        ),
        _kernel(
            "logits_0",
            *_integers("tokens", "rows"),
            *((name, "*fp32") for name in ("table", "scale", "sums", "logits")),
        ),
    ),
    launches=(
        _launch("write_0", Extent("T"), _step("tokens"), _step("slots"), CACHE),
        _launch(
            "sum_0",
            Extent("T"),
            *map(_step, ("positions", "starts", "blocks")),
            CACHE,
            SUMS,
            Argument("workspace", "total"),
            *(Argument("size", name) for name in ("T", "B", "M")),
        ),
        _launch(
            "logits_0",
            Extent("R"),
            *map(_step, ("tokens", "rows")),
            Argument("weight", "table"),
            Argument("weight", "scale"),
            SUMS,
            Argument("logits"),
        ),
    ),
    weights=("table", "scale"),
    weight_bytes=(4 * 8 * V, 4 * V),
    rearrangements=(
        Rearrangement(
            "table",
            4 * 8 * V,
            Launch("halves_0", (Extent(times=V), ONE, ONE), (Argument("source"), Argument("target")), ALWAYS, -1),
        ),
    ),
    caches=(Cache(1, 1, 1, "float32"),),
    workspaces=(Workspace("total", 8),),
    arena_bytes_per_token=128,
    vocabulary=V,
    block_size=BLOCK,
)

_CHOICES = (
    "tokens", "positions", "slots", "lengths", "blocks", "temperatures", "uniforms", "ends", "remaining", "made",
    "chosen",
)  # fmt: skip
CHOOSING = dataclasses.replace(
    PLAN,
    kernels=(*PLAN.kernels, _kernel("choose_0", ("logits", "*fp32"), *_integers(*_CHOICES), ("M", "i32"))),
    sampling=(_launch("choose_0", Extent("B"), Argument("logits"), *map(_step, _CHOICES), Argument("size", "M")),),
)
"""The same with the choice of tokens on the device; top-k, top-p and min-p are not looked at."""


def weights() -> dict[str, np.ndarray]:
    """As they are stored."""
    random = np.random.Generator(np.random.PCG64(7))
    table = random.integers(-50, 50, (V, 8)).astype(np.float32)
    return {
        "table": np.concatenate([table[:, 0::2], table[:, 1::2]], 1),
        "scale": random.integers(-50, 50, V).astype(np.float32),
        "unused": np.zeros(3, np.float32),
    }


def expected(tokens: list[int]) -> np.ndarray:
    """[T, V] logits after each of `tokens`."""
    given = weights()
    table = np.empty((V, 8), np.float32)
    table[:, 0::2], table[:, 1::2] = given["table"][:, :4], given["table"][:, 4:]
    sums = np.cumsum(tokens)
    return np.stack(
        [table[token, :V] + given["scale"] * total for token, total in zip(tokens, sums, strict=True)]
    ).astype(np.float32)


def batch(*sequences: tuple[list[int], int, list[int]], rows: list[int] | None = None) -> Batch:
    """Each sequence: its tokens, the position of the first, its blocks."""
    positions = [np.arange(at, at + len(tokens)) for tokens, at, _ in sequences]
    longest = max(len(blocks) for _, _, blocks in sequences)
    total = sum(len(tokens) for tokens, _, _ in sequences)
    return Batch(
        tokens=np.concatenate([np.array(tokens) for tokens, _, _ in sequences]),
        positions=np.concatenate(positions),
        slots=np.concatenate(
            [
                np.array(blocks)[p // BLOCK] * BLOCK + p % BLOCK
                for p, (_, _, blocks) in zip(positions, sequences, strict=True)
            ]
        ),
        starts=np.cumsum([0, *(len(tokens) for tokens, _, _ in sequences)]),
        lengths=np.array([at + len(tokens) for tokens, at, _ in sequences]),
        blocks=np.array([blocks + [0] * (longest - len(blocks)) for _, _, blocks in sequences]),
        rows=np.arange(total) if rows is None else np.array(rows),
    )
