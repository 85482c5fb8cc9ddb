"""Attention over the paged cache in C++ against its definition; its bits depend on nothing but the sequence."""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import llmc.ir.masked_attention  # noqa: F401
from llmc.ir.cache_formats import stored_width
from tests.support.native import ISAS, Isa, compile_native, run_native

_INTEGERS = ("tokens", "positions", "slots", "starts", "lengths", "blocks", "rows")
Floats = NDArray[np.float32]


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in "TBMR"),
        *((name, ctypes.c_void_p) for name in _INTEGERS),
        ("block_size", ctypes.c_int),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("step", _Step),
        *((name, ctypes.c_void_p) for name in ("k_cache", "v_cache", "q", "k", "v", "sinks")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("y", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Case:
    """One shape of the harness, and its mask as a formula."""

    name: str
    dtype: torch.dtype
    heads: int
    key_heads: int
    key_size: int
    value_size: int
    mask: str
    bias: str = "0"

    @property
    def error(self) -> float:
        """What rounding of queries and weights may do, as a fraction of the greatest value."""
        return {torch.bfloat16: 2**-9, torch.int8: 2**-13}.get(self.dtype, 0.0)

    def native_bytes(self, size: int) -> int:
        """Bytes of a key or value of `size` in the native cache."""
        padded = size + size % 2
        return padded + 2 if self.dtype == torch.int8 else padded * self.dtype.itemsize


CASES = (
    Case("Smol", torch.bfloat16, 9, 3, 64, 64, "k <= q"),
    Case("Odd", torch.float32, 4, 4, 20, 24, "(k <= q) & (q - k < 70)"),
    Case("Single", torch.float16, 8, 1, 80, 80, "(k <= q) | (k < 40)"),
    Case("Strange", torch.bfloat16, 5, 1, 33, 7, "k < q - 20 * h"),
    Case("Biased", torch.float32, 6, 2, 24, 33, "k <= q", "-0.0625 * (h + 1) * (q - k)"),
    Case("Smol8", torch.int8, 9, 3, 64, 64, "k <= q"),
    Case("Odd8", torch.int8, 5, 1, 33, 7, "k < q - 20 * h"),
    Case("Wide8", torch.int8, 12, 1, 80, 128, "(k <= q) & (q - k < 70)"),
    Case("Biased8", torch.int8, 6, 2, 24, 33, "k <= q", "-0.0625 * (h + 1) * (q - k)"),
    Case("Prefix8", torch.int8, 8, 8, 1, 1, "(k <= q) | (k < 40)"),
)
_SOURCE = '#include "attention_harness.h"\n' + "".join(
    f"EXPORT int {case.name.lower()}(const Call& call, int threads) {{ return attend<{case.name}>(call, threads); }}\n"
    for case in CASES
)
NUM_BLOCKS = 64


@functools.cache
def _library(isa: Isa) -> ctypes.CDLL:
    return compile_native(_SOURCE, isa=isa)


class Sequences:
    """Some sequences with random queries, keys and values, and a cache of theirs that is filled step by step."""

    def __init__(self, case: Case, lengths: Sequence[int], *, block_size: int = 32, seed: int = 0) -> None:
        self.case, self.size = case, block_size
        self.done = [0] * len(lengths)
        self.data = []
        for i, length in enumerate(lengths):
            made = np.random.default_rng((seed, i, length))
            shapes = ((case.heads, case.key_size), (case.key_heads, case.key_size), (case.key_heads, case.value_size))
            self.data.append([made.standard_normal((length, *shape), dtype=np.float32) for shape in shapes])
            if case.dtype == torch.bfloat16:  # as the kernel rounds them
                self.data[-1][0] = torch.tensor(self.data[-1][0]).bfloat16().float().numpy()
        free = list(np.random.default_rng(seed).permutation(NUM_BLOCKS))
        width = max(-(-length // block_size) for length in lengths)
        self.blocks = np.zeros((len(lengths), width), np.int64)
        for row, length in enumerate(lengths):
            used = -(-length // block_size)
            self.blocks[row, :used] = [free.pop() for _ in range(used)]
        # What was never written is NaN, in both layouts; of integers, their scale is.
        slots = NUM_BLOCKS * block_size
        sizes = case.key_size, case.value_size
        nothing = -1 if case.dtype == torch.int8 else torch.nan
        self.k, self.v = (
            torch.full(
                (NUM_BLOCKS, block_size, case.key_heads, stored_width(size, case.dtype)), nothing, dtype=case.dtype
            )
            for size in sizes
        )
        self.native = [np.full(slots * case.key_heads * case.native_bytes(size), 0xFF, np.uint8) for size in sizes]

    def step(
        self,
        counts: Sequence[int],
        *,
        isa: Isa = "avx512",
        threads: int = 2,
        sinks: Floats | None = None,
        softcap: float = 0.0,
        reference: bool = False,
    ) -> tuple[list[Floats], Floats | None]:
        """Takes so many tokens of each sequence: the outputs of each, and those of the definition, all together."""
        case = self.case
        spans = [(begin, begin + count) for begin, count in zip(self.done, counts, strict=True)]
        self.done = [end for _, end in spans]
        positions = np.concatenate([np.arange(*span) for span in spans])
        owner = np.repeat(np.arange(len(counts)), counts)
        slots = self.blocks[owner, positions // self.size] * self.size + positions % self.size
        arrays = {
            "positions": positions,
            "slots": slots,
            "starts": np.concatenate([[0], np.cumsum(counts)]),
            "lengths": np.array(self.done),
            "blocks": self.blocks,
        }
        q, k, v = (
            np.concatenate([made[i][slice(*span)] for made, span in zip(self.data, spans, strict=True)])
            for i in range(3)
        )
        scale = case.key_size**-0.5
        y = np.full((len(positions), case.heads, case.value_size), 7, np.float32)
        step = _Step(len(positions), len(counts), self.blocks.shape[1], 0, block_size=self.size)
        for name, array in arrays.items():
            setattr(step, name, array.ctypes.data)
        pointers = [array.ctypes.data for array in (*self.native, q, k, v)]
        call = _Call(step, *pointers, None if sinks is None else sinks.ctypes.data, scale, softcap, y.ctypes.data)
        assert getattr(_library(isa), case.name.lower())(ctypes.byref(call), threads) == 0
        wanted = None
        if reference:
            told = [torch.tensor(array) for array in (q, k, v)], [torch.tensor(array) for array in arrays.values()]
            sink = None if sinks is None else torch.tensor(sinks)
            op = torch.ops.llmc.cached_attention
            wanted = op(*told[0], self.k, self.v, *told[1], sink, [], case.mask, case.bias, scale, softcap).numpy()
        return np.split(y, np.cumsum(counts)[:-1]), wanted


def _bits(sequences: Sequences, steps: Sequence[Sequence[int]], row: int, threads: int = 2) -> Floats:
    return np.concatenate([sequences.step(counts, threads=threads)[0][row] for counts in steps])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_its_definition(case: Case, isa: Isa) -> None:
    sequences = Sequences(case, [1, 16, 17, 65, 200, 610])
    sinks = np.linspace(-1, 3, case.heads, dtype=np.float32)
    steps = (
        ([1, 15, 1, 63, 190, 300], None, 0.0),
        ([0, 1, 16, 1, 1, 1], sinks, 0.0),
        ([0, 0, 0, 1, 9, 309], sinks, 3.0),
    )
    for counts, sink, cap in steps:
        found, wanted = sequences.step(counts, isa=isa, sinks=sink, softcap=cap, reference=True)
        assert wanted is not None
        greatest = max(np.abs(made[2]).max() for made in sequences.data)
        np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-5, atol=case.error * greatest + 3e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bits_do_not_depend_on_the_steps(case: Case) -> None:
    whole = _bits(Sequences(case, [530]), [[530]], 0)
    for threads in (1, 3, 5):
        np.testing.assert_array_equal(_bits(Sequences(case, [530]), [[530]], 0, threads), whole)
    chunks = [[n] for n in (43, 21, 200, 1, 15, 230, 20)]  # the first holds the prefix
    np.testing.assert_array_equal(_bits(Sequences(case, [530]), chunks, 0, 3), whole)
    tokens = [[505]] + [[1]] * 25
    np.testing.assert_array_equal(_bits(Sequences(case, [530], block_size=48), tokens, 0, 2), whole)
    np.testing.assert_array_equal(_bits(Sequences(case, [530]), tokens, 0, 4), whole)


def test_bits_do_not_depend_on_the_batch() -> None:
    case = CASES[0]
    alone = _bits(Sequences(case, [300]), [[290], *[[1]] * 10], 0)
    batched = Sequences(case, [300, 90, 400, 3], seed=0)
    steps = [[290, 1, 380, 1], *[[1, 8, 2, 0]] * 9, [1, 17, 1, 2]]
    np.testing.assert_array_equal(_bits(batched, steps, 0, 3), alone)


def test_threads_share_a_long_sequence() -> None:
    found = []
    for threads in (1, 3, 5):
        sequences = Sequences(CASES[4], [2000], seed=1)
        sequences.step([1990], threads=threads)
        found.append(_bits(sequences, [[1], [3], [6]], 0, threads))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_sanitized() -> None:
    assert run_native(Path(__file__).with_name("attention_sanitized.cpp"), timeout=300).strip() == "ok"
