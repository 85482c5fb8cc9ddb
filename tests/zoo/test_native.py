"""Every promised family as native code: eager's logits, whatever the tokens are fed with, and the same bits."""

import pytest
import torch
from zoo.variants import REQUIRED

import llmc
from llmc.zoo import tiny
from llmc.zoo.checks import check, require, sequences
from llmc.zoo.steps import Driver, run_in_pieces

VOCAB = 128


@pytest.mark.parametrize("family", REQUIRED)
def test_a_required_family_is_all_native_and_matches_eager(family: str, record_property) -> None:
    module = tiny(family)
    compiled = llmc.compile(module, program="cpu", strict=True, prove=False)  # proved in test_families
    program = compiled.report["program"]
    assert program["kind"] == "cpu"
    print(f"{family}: 100 % native, {program['regions']} regions, {program['functions']} kernels")
    require(check(compiled.session.program, module, VOCAB), family)
    assert_same_bits(compiled.session.program, family)


def assert_same_bits(program, name: str) -> None:
    """One sequence alone and whole, in chunks, token by token, and among others gives the same bits."""
    prompts = sequences(VOCAB)
    whole = run_in_pieces(program, prompts[0], [])
    assert torch.equal(run_in_pieces(program, prompts[0], [1, 3, 7]), whole), f"{name}: chunks"
    assert torch.equal(run_in_pieces(program, prompts[0], [1] * (len(prompts[0]) - 1)), whole), (
        f"{name}: token by token"
    )
    together = Driver(program).step({"b": prompts[1], "a": prompts[0], "c": prompts[2], "d": prompts[3]})
    assert torch.equal(together["a"], whole), f"{name}: among other sequences"


def test_tables_of_positions_in_16_bits_are_read_as_numbers() -> None:
    """GPT-J gathers the sines of its positions out of a table that has the model's dtype."""
    module = tiny("gptj").bfloat16()
    native = llmc.compile(module, program="cpu", strict=True, prove=False).session.program
    reference = llmc.compile(module, program="reference", prove=False).session.program
    prompt = sequences(VOCAB)[0]
    have, expected = run_in_pieces(native, prompt, []), run_in_pieces(reference, prompt, [])
    error = (have - expected).square().mean().sqrt() / expected.std()
    assert error < 0.02, f"{error:.4f}"  # the reference rounds each result to bfloat16, native code only what it stores


QUANTIZED = [
    *((family, storage) for family in ("llama", "gemma3_text", "mixtral") for storage in ("int8", "int4")),
    ("llama", "int4:128"),
    ("gemma3_text", "fp8"),
    ("mixtral", "int6"),
]


@pytest.mark.parametrize(("family", "storage"), QUANTIZED)
def test_quantized_families_compute_what_their_reference_computes(family: str, storage: str) -> None:
    """Native and reference programs round the same weights and activations."""
    options = {"quantize": storage, "kv_dtype": "float32", "prove": False}
    native = llmc.compile(tiny(family), program="cpu", strict=True, **options).session.program
    reference = llmc.compile(tiny(family), program="reference", **options).session.program
    prompt = sequences(VOCAB)[0]
    have, expected = run_in_pieces(native, prompt, [5, 1]), run_in_pieces(reference, prompt, [])
    error = (have - expected).square().mean().sqrt() / expected.std()
    assert error < 0.02, f"{family} {storage}: {error:.4f}"  # an activation near a rounding edge may fall either way
    assert_same_bits(native, f"{family} {storage}")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mpt", "deepseek_v3", "falcon"])
def test_an_int8_cache_holds_what_its_reference_holds(family: str) -> None:
    """Windows, softcaps, sinks, biases, keys that are wider than values, one key head for all."""
    options = {"kv_dtype": "int8", "prove": False}
    native = llmc.compile(tiny(family), program="cpu", strict=True, **options).session.program
    reference = llmc.compile(tiny(family), program="reference", **options).session.program
    prompt = sequences(VOCAB)[0]
    have, expected = run_in_pieces(native, prompt, [5, 1]), run_in_pieces(reference, prompt, [])
    error = (have - expected).square().mean().sqrt() / expected.std()
    assert error < 0.01, f"{family}: {error:.4f}"  # a key near a rounding edge may fall either way
    assert_same_bits(native, f"{family}, int8 cache")
