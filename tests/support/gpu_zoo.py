"""What programs of tiny models must compute on any GPU: eager's logits, and the tokens of the reference program."""

from collections.abc import Callable

import torch

import llmc
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session
from llmc.zoo import tiny
from llmc.zoo.checks import check, require, sequences
from llmc.zoo.steps import run_in_pieces

VOCAB = 128
OnGpu = Callable[..., GpuProgram]
"""Compiles a module with some options, for a GPU that has it then."""


def matches_eager(on_gpu: OnGpu, family: str) -> None:
    """However tokens are fed."""
    module = tiny(family)
    require(check(on_gpu(module), module, VOCAB), family)


def chooses_tokens_as_the_reference(on_gpu: OnGpu, family: str, params: SamplingParams) -> None:
    """Several tokens a replay, for several sequences."""
    module = tiny(family)
    program = on_gpu(module)
    reference = llmc.compile(module, program="reference", prove=False).session
    prompts = [prompt[:12] for prompt in sequences(VOCAB)]
    have, want = session(program, reference).generate(prompts, params), reference.generate(prompts, params)
    for one, other in zip(have, want, strict=True):
        same_but_for_ties(reference, one.prompt_token_ids, one.token_ids, other.token_ids)


def session(program: GpuProgram, like: Session) -> Session:
    """A session of a program with the ranges of another."""
    ranges = Ranges(tokens=like.ranges.tokens, sequences=8, context=like.ranges.context)
    return Session(program, ModelFacts(VOCAB), ranges, block_size=program.block_multiple)


def same_but_for_ties(
    reference: Session, prompt: tuple[int, ...], have: tuple[int, ...], want: tuple[int, ...]
) -> None:
    """The first token that differs, if any, is as likely as the reference's up to rounding."""
    for place, (one, other) in enumerate(zip(have, want, strict=True)):
        if one != other:
            logits = reference.logits([*prompt, *want[:place]])[-1]
            assert abs(logits[one] - logits[other]) < 1e-4 * abs(logits).max(), f"token {place}: {one} for {other}"
            return


def computes_what_the_reference_does(on_gpu: OnGpu, family: str, **options: str) -> None:
    """The GPU multiplies in bfloat16; the reference rounds the activations to int8 where weights are integers."""
    module = tiny(family).bfloat16()
    reference = llmc.compile(module, program="reference", prove=False, **options).session.program
    prompt = sequences(VOCAB)[0]
    have, want = run_in_pieces(on_gpu(module, **options), prompt, [5, 1, 1]), run_in_pieces(reference, prompt, [])
    error = ((have - want).square().mean().sqrt() / want.std()).item()
    coarse = options["quantize"].startswith("int") or options["kv_dtype"] == "fp8"  # levels apart by 1/8 of a number
    assert error < (0.06 if coarse else 0.03), f"{error:.4f}"


def tokens_do_not_depend_on_the_batch(on_gpu: OnGpu, together: int) -> None:
    """Padded batches, several tokens a replay: each sequence continues as it does alone."""
    module = tiny("llama")
    reference = llmc.compile(module, program="reference", prove=False).session
    model = session(on_gpu(module), reference)
    prompts = [[1 + place % 100, 5, 9 + place % 7] for place in range(together)]
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    for prompt, found in zip(prompts, model.generate(prompts, params), strict=True):
        (alone,) = model.generate([prompt], params)
        same_but_for_ties(reference, tuple(prompt), found.token_ids, alone.token_ids)


def steps_give_the_same_bits_again(on_gpu: OnGpu) -> None:
    """Nothing is left over from the step before, and no order changes a sum."""
    program, prompt = on_gpu(tiny("llama")), sequences(VOCAB)[0]
    assert torch.equal(run_in_pieces(program, prompt, [4, 1, 1]), run_in_pieces(program, prompt, [4, 1, 1]))
