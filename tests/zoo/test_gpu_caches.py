"""Families on generated Triton kernels with caches of eight bits, and where attention needs no running maximum."""

import pytest
from zoo.test_gpu import VOCAB, error, gpu_program

import llmc
from llmc.cli.kernels import reasons
from llmc.zoo import tiny
from llmc.zoo.checks import sequences
from llmc.zoo.oracle import logits_of
from llmc.zoo.steps import run_in_pieces


@pytest.mark.parametrize(("kv_dtype", "most"), [("int8", 0.03), ("fp8", 0.1)])
def test_caches_of_eight_bits(kv_dtype: str, most: float) -> None:
    module = tiny("llama")
    program = gpu_program(module, kv_dtype=kv_dtype)
    prompt = sequences(VOCAB)[0]
    found = run_in_pieces(program, prompt, [13, 1, 1, 1, 1, 1, 1])
    off = error(found, logits_of(module, prompt))
    assert 1e-4 < off < most
    assert {cache.dtype for cache in program.plan.caches} == {kv_dtype}


@pytest.mark.parametrize(("family", "bounded"), [("gemma2", True), ("qwen3", True), ("llama", False)])
def test_where_scores_are_bounded(family: str, bounded: bool) -> None:
    build = llmc.compile(tiny(family), target="sm_90", prove=False)._build
    text = build.gpu.sources["sm_90"].text
    assert ("weigh_bounded" in text) == bounded and ("weigh(" in text) != bounded
    shown = [line for line in reasons(build.gpu.explain(build.model, "sm_90")) if "running maximum" in line]
    assert shown and all(("no running maximum: weights up to 2^" in line) == bounded for line in shown)
