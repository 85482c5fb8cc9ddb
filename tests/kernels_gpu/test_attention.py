"""Attention over the paged cache in Triton against its definition."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.attention_regions import Case, Sequences, attention_drafts
from support.triton_interpreter import launch, load_kernels

from llmc.codegen.triton import attention_kernel, attention_lists
from llmc.codegen.triton.kernel import KernelText, module_text
from llmc.runtime.shares import ShareTable

F32, F16 = torch.float32, torch.float16


def _agree(sequences: Sequences, *steps: Sequence[int]) -> None:
    for counts in steps:
        found, wanted = sequences.step(counts)
        greatest = max(1.0, float(np.abs(wanted).max()))
        assert np.abs(found - wanted).max() <= sequences.case.tolerance * greatest, counts


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129])
def test_decode_after_prefill_at_the_edges_of_blocks(length: int) -> None:
    sequences = Sequences(Case(), [length + 2])
    _agree(sequences, [length], [1], [1])
    assert sequences.launches == ["attention_prefill" if length > 1 else "attention_decode"] + ["attention_decode"] * 2


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
DISTANCES = torch.linspace(-2, 2, 4 * 20).reshape(4, 20)
SEEN = torch.rand(60, generator=torch.Generator().manual_seed(1)) > 0.4

SKIPPING = {
    "window": "(k <= q) & (q - k < 200)",
    "chunks": "(k <= q) & (k // 300 == q // 300)",
    "the first, and a window": "(k <= q) & ((k < 4) | (q - k < 200))",
    "the first, and a late window": "((k < 4) | (q - k < 400)) & (k <= q - 150)",
    "chunks and those before": "(k <= q) & (q // 256 - k // 256 < 2)",
    "a prefix": "(k < 100) & (k <= q)",
    "a span of keys": "(k <= q) & (k >= 250) & (k < 500)",
    "far heads": "(k <= q) & (q - k < 100 + 50 * h)",
}


CASES = {
    "one head of each key head": Case(heads=3, key_heads=3),
    "three query heads over a key head": Case(heads=6, key_heads=2, key_size=32, value_size=32, dtype=F16),
    "eight query heads over a key head": Case(heads=8, key_heads=1, key_size=32, value_size=32),
    "more heads than a program takes": Case(heads=37, key_heads=1),
    "sizes that are no powers of two": Case(key_size=20, value_size=24, dtype=F32),
    "tiny heads": Case(key_size=8, value_size=4, dtype=F16),
    "keys wider than values": Case(key_size=48, value_size=32),
    "fp32": Case(dtype=F32, heads=6),
    "int8": Case(heads=6, key_size=20, value_size=24, dtype=torch.int8, scale=0.2),
    "fp8": Case(heads=6, key_size=32, dtype=torch.float8_e4m3fn, mask="(k <= q) & (q - k < 40)", softcap=4.0),
    "sums before values": Case(heads=6, target="sm_100"),
    "bytes and sums before values": Case(heads=6, dtype=torch.int8, target="sm_100"),
    "one group of keys": Case(key_size=200, value_size=256, dtype=F32, target="sm_80"),
    "window": Case(mask="(k <= q) & (q - k < 40)", dtype=F32),
    "narrow window": Case(mask="(k <= q) & (q - k < 3)", dtype=F32),
    "everything": Case(mask="True", dtype=F32),
    "not the nearest": Case(mask="k <= q - 3", dtype=F32),
    "some of the future": Case(mask="k <= q + 12", dtype=F32),
    "a prefix that all see": Case(mask="(k <= q) | (k < 40)", dtype=F32),
    "chunks": Case(mask="(k <= q) & (k // 24 == q // 24)", dtype=F32),
    "chunks and a window": Case(mask="(k <= q) & (k // 64 == q // 64) & (q - k < 23)", dtype=F32),
    "the first, and a window": Case(mask="(k <= q) & ((k < 4) | (q - k < 30))", dtype=F32),
    "both sides": Case(mask="abs(q - k) < 20", dtype=F32),
    "every second": Case(mask="(k <= q) & ((q - k) % 2 == 0)", dtype=F32),
    "a mask for each head": Case(mask="(k < q - 20 * h) & (q % 3 != 1)", dtype=F32),
    "a table of keys": Case(mask="(k <= q) & t0[k % 60]", tables=(SEEN,), dtype=F32),
    "lists of blocks, int8": Case(mask="(k <= q) & (k // 20 % 2 == q % 2)", dtype=torch.int8, scale=0.2, listed=True),
    "softcap": Case(softcap=3.0, scale=1.0, dtype=F32),
    "no running maximum": Case(heads=6, bounded=True, mask="(k <= q) & (q - k < 40)", dtype=F32),
    "no running maximum, large scores": Case(
        bounded=True, softcap=60.0, scale=9.0, sinks=torch.tensor([-80.0, 0.0, 60.0, 80.0]), dtype=F32
    ),
    "sinks": Case(sinks=torch.tensor([0.5, -1.0, 3.0, 0.0], dtype=torch.bfloat16), mask="k <= q - 2", dtype=F32),
    "slopes": Case(bias="t0[h] * (k - q)", tables=(SLOPES,), dtype=F32),
    "slopes as powers": Case(bias="2.0 ** (-(h + 1.0)) * (k - q) - exp(h / 9) + sqrt(q + 1) * log(h + 2)", dtype=F32),
    "relative positions": Case(
        bias="t0[h, minimum(maximum(q - k, 0), 19)]", tables=(DISTANCES,), dtype=F32, softcap=5.0
    ),
    "an odd formula": Case(
        bias="where((k - q) // 7 % 2 == 0, floor(k / 3), abs(q - k) * 0.01) * maximum(0.5, -h)", dtype=F32
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_attention_in_steps_of_one_sequence(name: str) -> None:
    _agree(Sequences(CASES[name], [71]), [68], [1], [2])


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("cores", [2, 40])
def test_blocks_that_no_query_sees_are_not_read(name: str, cores: int) -> None:
    case = Case(mask=SKIPPING[name], dtype=F32, cores=cores)
    sequences = Sequences(case, [940, 700, 70], hidden_blocks=False)
    sequences.done = [900, 690, 66]
    _fill(sequences)
    _agree(sequences, [30, 1, 2], [1, 1, 1], [5, 1, 1])


def test_blocks_are_read_where_the_formula_is_not_understood() -> None:
    """So that the test above can fail."""
    mask = "(k <= q) & ((q - k) % 1000 < 200)"
    sequences = Sequences(Case(mask=mask, dtype=F32), [700], hidden_blocks=False)
    sequences.done = [690]
    _fill(sequences)
    with pytest.raises(IndexError):
        sequences.step([1])


LISTED = {
    "each eighth block": Case(mask="(k <= q) & ((q // 64 - k // 64) % 8 == 0)"),
    "far spans": Case(mask="(k <= q) & ((q - k < 100) | (k // 256 % 2 == 1))"),
    "a table of keys": Case(mask="(k <= q) & t0[k // 128]", tables=(torch.tensor([1, 0, 0, 1, 0, 1, 1, 1]) > 0,)),
    "a table of queries": Case(mask="(k <= q) & (k // 128 == t0[q])", tables=(torch.arange(940) // 300,)),
    "heads that see other blocks": Case(mask="(k <= q) & ((k // 128 + h) % 4 == 1)", heads=2, key_heads=1),
    "seldom any": Case(mask="(k <= q) & (q % 7 == 3) & (k % 400 == 5)"),
}


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("cores", [2, 40])
def test_blocks_of_lists_are_those_that_are_read(name: str, cores: int) -> None:
    case = replace(LISTED[name], dtype=F32, cores=cores, listed=True)
    sequences = Sequences(case, [940, 700, 70], hidden_blocks=False)
    sequences.done = [900, 690, 66]
    _fill(sequences)
    _agree(sequences, [30, 1, 2], [1, 1, 1], [5, 1, 1])
    lists = [name for name in sequences.launches if name.endswith("_blocks")]
    assert lists == ["attention_decode_blocks", "attention_prefill_blocks"] + ["attention_decode_blocks"] * 2 + [
        "attention_prefill_blocks"
    ]


def test_sequences_longer_than_lists_have_all_blocks_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_lists, "MOST_KEYS", 512)
    monkeypatch.setattr(attention_kernel, "MOST_KEYS", 512)
    case = replace(LISTED["each eighth block"], dtype=F32, listed=True)
    sequences = Sequences(case, [940, 500, 30])
    sequences.done = [900, 490, 20]
    _fill(sequences)
    _agree(sequences, [30, 1, 2], [1, 1, 1])


def test_sequences_of_different_lengths_in_one_step() -> None:
    sequences = Sequences(Case(heads=6, key_heads=2), [1, 66, 131, 20, 7, 4])
    _agree(sequences, [1, 64, 1, 17, 3, 2])  # starts, prefills and a prompt taken token by token


@pytest.mark.parametrize("cores", [2, 8, 40])
@pytest.mark.parametrize("case", [Case(dtype=F32, heads=6), Case(heads=6, bounded=True)])
def test_keys_divided_over_programs(case: Case, cores: int) -> None:
    sequences = Sequences(replace(case, cores=cores), [900, 300, 129, 2])
    sequences.done = [898, 298, 127, 0]
    _fill(sequences)
    _agree(sequences, [1, 1, 1, 1], [1, 1, 1, 1])
    assert all(not bool(left.any()) for name, left in sequences.workspaces.items() if name == "attention_counters")


@pytest.mark.parametrize("programs", [1, 5, 1000])
@pytest.mark.parametrize("name", ["chunks", "the first, and a window"])
def test_other_numbers_of_programs_than_by_rule(name: str, programs: int) -> None:
    """As a table of what was measured says, up to what there is memory for."""
    sequences = Sequences(Case(mask=SKIPPING[name], dtype=F32, cores=6), [940, 700, 70], hidden_blocks=False)
    (attention,) = sequences.shares
    table = ShareTable(((1, 2), (3, programs)), "a test")
    sequences.shares[attention] = replace(sequences.shares[attention], chosen=table)
    assert (sequences.shares[attention].rule, sequences.shares[attention].most) == (6, 12)
    sequences.done = [900, 690, 66]
    _fill(sequences)
    _agree(sequences, [1, 1, 1], [1, 1, 1], [5, 1, 1])


@pytest.mark.parametrize("mask", ["(k <= q) & (q - k < 2000)", "(k <= q) & ((k < 70) | (q - k < 1900))"])
def test_programs_share_what_is_visible(mask: str) -> None:
    """In a context of 32k that a mask shows 2k of, each program has as many blocks, and none has nothing to do."""
    draft = next(draft for draft in attention_drafts(Case(mask=mask)) if draft.kernel.kind == "attention_decode")
    keys_of, programs = draft.kernel.functions, 8
    text = module_text({"attention": replace_body(draft.kernel)}, "Shares.")
    assert set(keys_of) <= {"keys", "ranges"}
    work = torch.full((programs, 3), -1, dtype=torch.int32)
    starts, lengths = torch.arange(2), torch.tensor([32700])
    launch(load_kernels(text).attention, (programs,), starts, lengths, work, 1, programs)
    assert (work[:, 0] == 0).all()
    blocks = (work[:, 2] - work[:, 1] + 63) // 64
    assert 31 <= int(blocks.sum()) <= 34 and int(blocks.max()) <= 5 and int(blocks.min()) >= 1
    assert (work[1:, 1] == work[:-1, 2]).all()


def replace_body(kernel: KernelText) -> KernelText:
    """A kernel that writes which share each program has, by the functions of another."""
    body = [
        "number = tl.program_id(0)",
        "sequence, share, shares, place, first, last = find_share(starts, lengths, B, number, programs, @keys, 64)",
        "tl.store(work + number * 3, sequence)",
        "tl.store(work + number * 3 + 1, first)",
        "tl.store(work + number * 3 + 2, last)",
    ]
    names = ("starts", "*i64"), ("lengths", "*i64"), ("work", "*i32"), ("B", "i32"), ("programs", "i32")
    return replace(kernel, lines=body, parameters=list(names))


def test_keys_of_one_sequence_divided_over_programs() -> None:
    sequences = Sequences(Case(dtype=F32, mask="(k <= q) & (q - k < 700)"), [900])
    sequences.done = [898]
    _fill(sequences)
    _agree(sequences, [1], [1])


def test_sequences_of_one_token_beside_prompts() -> None:
    """They have the kernel that divides their keys, whatever else is in the step."""
    sequences = Sequences(Case(dtype=F32, cores=16), [700, 40, 300, 1, 9])
    sequences.done = [698, 0, 298, 0, 8]
    _fill(sequences)
    _agree(sequences, [1, 38, 1, 1, 1])
    assert sequences.launches == ["attention_decode", "attention_prefill"]


def _fill(sequences: Sequences) -> None:
    """Put the keys and values of the tokens that are done into the cache."""
    for row, done in enumerate(sequences.done):
        places = np.arange(done)
        slots = torch.tensor(sequences.blocks[row, places // 128] * 128 + places % 128)
        for cache, made in zip(sequences.caches, sequences.data[row][1:], strict=True):
            cache.view(-1, *cache.shape[2:])[slots] = torch.tensor(made[:done]).to(cache.dtype)
