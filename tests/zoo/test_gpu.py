"""Families on generated Triton kernels, without a GPU: the logits of eager, for prompts, pieces and single tokens."""

import pytest
import torch
from support.interpreted_device import InterpretedDevice

import llmc
from llmc.ir.weights import bytes_of_each
from llmc.runtime.cuda.program import GpuProgram
from llmc.zoo import tiny
from llmc.zoo.checks import prefill, ragged, sequences
from llmc.zoo.oracle import logits_of
from llmc.zoo.steps import run_in_pieces

VOCAB = 128
FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gptj",
    "opt", "bloom", "falcon", "mpt", "olmo2", "cohere2", "granite", "stablelm", "starcoder2", "glm4", "mixtral",
    "qwen2_moe", "gpt_oss", "deepseek_v3", "nemotron",
)  # fmt: skip
TOLERANCE = 2e-5
"""Root mean square of the error over that of the logits: both compute in float32, in another order."""


def gpu_program(module: torch.nn.Module, level: str = "sm_90", **options: object) -> GpuProgram:
    """The program of a module for a GPU, run by the interpreter of Triton."""
    build = llmc.compile(module, target=level, prove=False, **options)._build
    source = build.gpu.sources[level]
    return GpuProgram(source.plan, InterpretedDevice(source.text), dict(bytes_of_each(build.model.weights)))


def error(have: torch.Tensor, expected: torch.Tensor) -> float:
    """The root mean square of the difference over that of what is expected."""
    return ((have - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_what_eager_computes(family: str) -> None:
    module = tiny(family)
    program = gpu_program(module)
    prompts = sequences(VOCAB)
    expected = [logits_of(module, prompt) for prompt in prompts]
    found = {"prefill": prefill(program, prompts), "ragged": ragged(program, prompts)}
    pieces = run_in_pieces(program, prompts[0], [1, 13, 1, 1, 1, 1, 1])  # past a window of 8, and decoding
    errors = {
        name: max(error(logits, expected[which]) for which, logits in rows.items())
        for name, rows in {**found, "pieces": {0: pieces}}.items()
    }
    assert max(errors.values()) < TOLERANCE, errors
