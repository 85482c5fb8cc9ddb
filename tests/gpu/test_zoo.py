"""Families on the GPU: eager's logits however tokens are fed, and the tokens of the reference program."""

import pytest
from support import gpu_zoo
from support.gpu import on_gpu

from llmc.runtime.sample import SamplingParams

FAMILIES = ("llama", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2", "bloom", "falcon", "olmo2", "cohere2",
            "mixtral", "gpt_oss")  # fmt: skip
GREEDY = SamplingParams(max_new_tokens=40, ignore_eos=True)
DRAWN = SamplingParams(
    max_new_tokens=40, temperature=1.3, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.1, logprobs=3, seed=4,
    ignore_eos=True,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_matches_eager(family: str) -> None:
    gpu_zoo.matches_eager(on_gpu, family)


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral"])
def test_tokens_are_those_of_the_reference(family: str, params: SamplingParams) -> None:
    gpu_zoo.chooses_tokens_as_the_reference(on_gpu, family, params)


@pytest.mark.parametrize("storage", ["float", "int8", "int4", "fp8"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_16_bits_and_quantized_weights_compute_what_the_reference_does(family: str, storage: str) -> None:
    gpu_zoo.computes_what_the_reference_does(on_gpu, family, quantize=storage, kv_dtype="bfloat16")


@pytest.mark.parametrize("sequences_together", [1, 3, 9, 33])
def test_tokens_do_not_depend_on_the_batch(sequences_together: int) -> None:
    gpu_zoo.tokens_do_not_depend_on_the_batch(on_gpu, sequences_together)


def test_steps_give_the_same_bits_again() -> None:
    gpu_zoo.steps_give_the_same_bits_again(on_gpu)
