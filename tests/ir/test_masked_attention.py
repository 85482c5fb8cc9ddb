"""Attention by formula: against attention by mask tensor, and in pieces over a paged cache against the whole."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from llmc.ir.mask import evaluate

llmc = torch.ops.llmc

BLOCK_SIZE, NUM_BLOCKS = 4, 17
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.7])


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def qkv(heads: int, key_heads: int, length: int, size: int, value_size: int, batch: int = 1) -> list[Tensor]:
    """q [B, H, S, D], k [B, Hk, S, D], v [B, Hk, S, Dv]."""
    return [
        randn(batch, count, length, width, seed=seed)
        for seed, (count, width) in enumerate([(heads, size), (key_heads, size), (key_heads, value_size)])
    ]


MASKS = ["True", "k <= q", "(k <= q) & (q - k < 3)", "(k <= q) & (q // 4 == k // 4)", "(k <= q) | (k < 2)"]
HEADS = [(1, 1), (4, 4), (6, 2), (6, 1)]


@pytest.mark.parametrize("length", [1, 2, 7, 13])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("heads", "key_heads"), HEADS)
def test_masked_attention_is_attention_by_the_mask_as_a_tensor(
    heads: int, key_heads: int, mask: str, length: int
) -> None:
    parts = qkv(heads, key_heads, length, 5, 3, batch=2)
    places = torch.arange(length)
    table = evaluate(mask, places[:, None], places, places[:1], [], torch.float64).expand(length, length)
    expected = llmc.attention(*parts, table, None, 0.3, 0.0, False)
    found = llmc.masked_attention(*parts, None, [], mask, "0", 0.3, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("bias", ["0", "t0[h] * (k - q)"])
def test_biases_sinks_and_soft_caps_are_those_of_attention(bias: str, with_sinks: bool, softcap: float) -> None:
    parts = qkv(6, 2, 7, 5, 3)
    sinks = randn(6) if with_sinks else None
    places = torch.arange(7)
    tensor = torch.zeros(7, 7).double().masked_fill(places[:, None] < places, -torch.inf)
    if bias != "0":
        tensor = tensor + SLOPES.double()[:, None, None] * (places - places[:, None])
    expected = llmc.attention(*parts, tensor, sinks, 0.3, softcap, False)
    found = llmc.masked_attention(*parts, sinks, [SLOPES], "k <= q", bias, 0.3, softcap)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    plain = llmc.masked_attention(*parts, None, [], "k <= q", "0", 0.3, 0.0)
    assert torch.equal(found, plain) == (bias == "0" and not with_sinks and softcap == 0.0)


def test_a_row_that_sees_nothing_is_zero() -> None:
    parts = qkv(2, 1, 3, 4, 4)
    found = llmc.masked_attention(*parts, None, [], "k < q", "0", 0.3, 0.0)
    assert torch.equal(found[:, :, 0], torch.zeros(1, 2, 4, dtype=torch.float64))
    assert not found[:, :, 1:].isnan().any()


class Cache:
    """A paged cache whose blocks are handed out in a scattered order, and the packed steps over it."""

    def __init__(self, key_heads: int, size: int, value_size: int, dtype: torch.dtype = torch.float64) -> None:
        self.keys = torch.full((NUM_BLOCKS, BLOCK_SIZE, key_heads, size), torch.nan, dtype=dtype)
        self.values = torch.full((NUM_BLOCKS, BLOCK_SIZE, key_heads, value_size), torch.nan, dtype=dtype)
        self.free = [block * 5 % NUM_BLOCKS for block in range(NUM_BLOCKS)]
        self.blocks: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    def step(
        self, pieces: dict[int, list[Tensor]], sinks: Tensor | None, mask: str, bias: str, softcap: float
    ) -> dict[int, Tensor]:
        """Attend for pieces (q, k, v, each [S, H, D]) of sequences by number."""
        positions, slots, starts, lengths = [], [], [0], []
        for name, (q, _, _) in pieces.items():
            begin = self.lengths.get(name, 0)
            table = self.blocks.setdefault(name, [])
            for position in range(begin, begin + len(q)):
                if position // BLOCK_SIZE == len(table):
                    table.append(self.free.pop(0))
                positions.append(position)
                slots.append(table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
            self.lengths[name] = begin + len(q)
            starts.append(starts[-1] + len(q))
            lengths.append(self.lengths[name])
        width = max(len(self.blocks[name]) for name in pieces)
        table = [self.blocks[name] + [0] * (width - len(self.blocks[name])) for name in pieces]
        numbers = [torch.tensor(part) for part in (positions, slots, starts, lengths, table)]
        packed = [torch.cat(parts) for parts in zip(*pieces.values(), strict=True)]
        out = llmc.cached_attention(
            *packed, self.keys, self.values, *numbers, sinks, [SLOPES], mask, bias, 0.3, softcap
        )
        return {name: out[starts[i] : starts[i + 1]] for i, name in enumerate(pieces)}


def packed(parts: list[Tensor], begin: int, end: int) -> list[Tensor]:
    """Tokens begin to end of [1, H, S, D] as [T, H, D]."""
    return [part[0, :, begin:end].transpose(0, 1) for part in parts]


CUTS = {"whole": [13], "one by one": [1] * 13, "chunks": [1, 5, 2, 5], "across blocks": [3, 4, 6]}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (6, 6), (6, 1)])
@pytest.mark.parametrize(
    ("mask", "bias", "with_sinks", "softcap"),
    [
        ("k <= q", "0", False, 0.0),
        ("(k <= q) & (q - k < 3)", "0", True, 0.0),
        ("k <= q", "t0[h] * (k - q)", False, 2.0),
    ],
)
def test_pieces_over_scattered_blocks_give_what_the_whole_gives(
    mask: str, bias: str, with_sinks: bool, softcap: float, heads: int, key_heads: int, cut: str
) -> None:
    parts = qkv(heads, key_heads, 13, 5, 3)
    sinks = randn(heads) if with_sinks else None
    expected = llmc.masked_attention(*parts, sinks, [SLOPES], mask, bias, 0.3, softcap)
    cache = Cache(key_heads, 5, 3)
    begin, rows = 0, []
    for count in CUTS[cut]:
        rows.append(cache.step({0: packed(parts, begin, begin + count)}, sinks, mask, bias, softcap)[0])
        begin += count
    torch.testing.assert_close(torch.cat(rows).transpose(0, 1)[None], expected, rtol=1e-12, atol=1e-12)


def test_sequences_of_one_step_do_not_see_each_other() -> None:
    lengths = {0: 13, 1: 7, 2: 1}
    parts = {name: [part[:, :, :length] for part in qkv(6, 2, 13, 5, 3)] for name, length in lengths.items()}
    parts[1] = [part + 1 for part in parts[1]]
    cache = Cache(2, 5, 3)
    half = {name: (length + 1) // 2 for name, length in lengths.items()}
    begun = {name: packed(parts[name], 0, half[name]) for name in lengths}
    first = cache.step(begun, None, "k <= q", "0", 0.0)
    ended = {name: packed(parts[name], half[name], lengths[name]) for name in (1, 0)}
    second = cache.step(ended, None, "k <= q", "0", 0.0)
    for name in lengths:
        rows = torch.cat([first[name], second[name]] if name in second else [first[name]])
        expected = llmc.masked_attention(*parts[name], None, [], "k <= q", "0", 0.3, 0.0)
        torch.testing.assert_close(rows.transpose(0, 1)[None], expected, rtol=1e-12, atol=1e-12)


def test_only_the_slots_of_the_step_are_written() -> None:
    cache = Cache(2, 5, 3)
    parts = qkv(6, 2, 6, 5, 3)
    cache.step({0: packed(parts, 0, 6)}, None, "k <= q", "0", 0.0)
    written = ~cache.keys.isnan().all(-1).all(-1)
    assert written.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [5, 0], [5, 1]]
    assert torch.equal(written, ~cache.values.isnan().all(-1).all(-1))
    assert torch.equal(cache.keys[5, 1], parts[1][0, :, 5])
    assert torch.equal(cache.values[0, 2], parts[2][0, :, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_may_have_a_narrower_type_than_the_queries(dtype: torch.dtype) -> None:
    parts = qkv(6, 2, 6, 5, 3)
    cache = Cache(2, 5, 3, dtype)
    found = cache.step({0: packed(parts, 0, 6)}, None, "k <= q", "0", 0.0)[0]
    rounded = [parts[0], *(part.to(dtype).double() for part in parts[1:])]
    expected = llmc.masked_attention(*rounded, None, [], "k <= q", "0", 0.3, 0.0)
    assert found.dtype == torch.float64 and cache.keys.dtype == dtype
    torch.testing.assert_close(found.transpose(0, 1)[None], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_both_ops_are_lawful_custom_ops(dtype: torch.dtype) -> None:
    parts = [part.to(dtype) for part in qkv(6, 2, 5, 5, 3)]
    sinks = randn(6, dtype=dtype)
    opcheck(llmc.masked_attention.default, (*parts, sinks, [SLOPES], "k <= q", "t0[h] * k", 0.3, 2.0))
    caches = [torch.zeros(3, BLOCK_SIZE, 2, size, dtype=dtype) for size in (5, 3)]
    numbers = [torch.tensor(part) for part in ([0, 1, 2, 3, 4], [8, 9, 10, 11, 4], [0, 5], [5], [[2, 1]])]
    rows = [part.contiguous() for part in packed(parts, 0, 5)]
    opcheck(llmc.cached_attention.default, (*rows, *caches, *numbers, sinks, [SLOPES], "k <= q", "t0[h] * k", 0.3, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_results_are_near_the_fp64_results(dtype: torch.dtype) -> None:
    narrow = [part.to(dtype) for part in qkv(6, 2, 13, 5, 3)]
    found = llmc.masked_attention(*narrow, None, [SLOPES], "k <= q", "t0[h] * (k - q)", 0.3, 0.0)
    wide = [part.double() for part in narrow]
    expected = llmc.masked_attention(*wide, None, [SLOPES], "k <= q", "t0[h] * (k - q)", 0.3, 0.0)
    assert found.dtype == dtype
    half_ulp = torch.finfo(dtype).eps / 2
    assert (found.double() - expected).abs().max() <= 4 * max(half_ulp, 2e-7)
