"""Families on the GPU: eager's logits however tokens are fed, and the tokens of the reference program."""

import pytest
import torch
from support.gpu import on_gpu

import llmc
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session
from llmc.zoo import tiny
from llmc.zoo.checks import check, require, sequences
from llmc.zoo.steps import run_in_pieces

VOCAB = 128
FAMILIES = ("llama", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2", "bloom", "falcon", "olmo2", "cohere2",
            "mixtral", "gpt_oss")  # fmt: skip
NEW = 40


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_matches_eager(family: str) -> None:
    module = tiny(family)
    require(check(on_gpu(module), module, VOCAB), family)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral"])
def test_greedy_tokens_are_those_of_the_reference(family: str) -> None:
    module = tiny(family)
    program = on_gpu(module)
    reference = llmc.compile(module, program="reference", prove=False).session
    prompts = [prompt[:12] for prompt in sequences(VOCAB)]
    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    have, want = session(program, reference).generate(prompts, params), reference.generate(prompts, params)
    for one, other in zip(have, want, strict=True):
        assert_same_but_for_ties(reference, one.prompt_token_ids, one.token_ids, other.token_ids)


def session(program: GpuProgram, like: Session) -> Session:
    ranges = Ranges(tokens=like.ranges.tokens, sequences=8, context=like.ranges.context)
    return Session(program, ModelFacts(VOCAB), ranges, block_size=program.block_multiple)


def assert_same_but_for_ties(
    reference: Session, prompt: tuple[int, ...], have: tuple[int, ...], want: tuple[int, ...]
) -> None:
    """The first token that differs, if any, is as likely as the reference's up to rounding."""
    for place, (one, other) in enumerate(zip(have, want, strict=True)):
        if one != other:
            logits = reference.logits([*prompt, *want[:place]])[-1]
            assert abs(logits[one] - logits[other]) < 1e-4 * abs(logits).max(), f"token {place}: {one} for {other}"
            return


@pytest.mark.parametrize("storage", ["float", "int8", "int4", "fp8"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_16_bits_and_quantized_weights_compute_what_the_reference_does(family: str, storage: str) -> None:
    """The GPU multiplies in bfloat16; the reference rounds the activations to int8 where weights are integers."""
    module = tiny(family).bfloat16()
    options = {"quantize": storage, "kv_dtype": "bfloat16"}
    reference = llmc.compile(module, program="reference", prove=False, **options).session.program
    prompt = sequences(VOCAB)[0]
    have, want = run_in_pieces(on_gpu(module, **options), prompt, [5, 1, 1]), run_in_pieces(reference, prompt, [])
    error = ((have - want).square().mean().sqrt() / want.std()).item()
    assert error < (0.06 if storage.startswith("int") else 0.03), f"{error:.4f}"


@pytest.mark.parametrize("sequences_together", [1, 3, 9, 33])
def test_tokens_do_not_depend_on_the_batch(sequences_together: int) -> None:
    """Padded batches of every recorded size, several tokens a replay: each sequence continues as it does alone."""
    module = tiny("llama")
    reference = llmc.compile(module, program="reference", prove=False).session
    model = session(on_gpu(module), reference)
    prompts = [[1 + place % 100, 5, 9 + place % 7] for place in range(sequences_together)]
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    together = model.generate(prompts, params)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = model.generate([prompt], params)
        assert_same_but_for_ties(reference, tuple(prompt), found.token_ids, alone.token_ids)


def test_steps_give_the_same_bits_again() -> None:
    module = tiny("llama")
    program = on_gpu(module)
    prompt = sequences(VOCAB)[0]
    assert torch.equal(run_in_pieces(program, prompt, [4, 1, 1]), run_in_pieces(program, prompt, [4, 1, 1]))
