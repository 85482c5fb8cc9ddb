"""A packed graph as regions: what is fused into what, and what is refused."""

from functools import cache

import llmc
from llmc.codegen.cpp.emit import CpuSource
from llmc.codegen.regions import Attention, Experts, Linear, RowOp, RowRegion
from llmc.zoo import tiny


@cache
def source(family: str) -> CpuSource:
    """The generated program of a tiny model."""
    build = llmc.compile(tiny(family), program="cpu", strict=True, prove=False)._build
    assert build is not None and build.native is not None
    return build.native.source


def linears(family: str) -> list[Linear]:
    return [region for region in source(family).regions if isinstance(region, Linear)]


def test_a_llama_layer_is_five_regions() -> None:
    kinds = [type(region) for region in source("llama").regions]
    layer = [Linear, Attention, Linear, Linear, Linear]
    assert kinds == [RowRegion, *layer, *layer, Linear]  # before: embedding, cos and sin; after: the logits


def test_a_llama_layer_fuses_norms_rotation_cache_residuals_and_gate() -> None:
    qkv, out, gate_up, down = linears("llama")[:4]
    assert isinstance(qkv.source, RowOp) and qkv.source.op == "rms_norm"
    assert [(part.role, part.heads, part.rotation is not None) for part in qkv.parts] == [
        ("q", 4, True),
        ("k", 2, True),
        ("v", 2, False),
    ]
    assert [step.op for step in out.chain] == ["add"]
    assert isinstance(gate_up.source, RowOp) and gate_up.gate == "silu"
    assert [step.op for step in down.chain] == ["add"]


def test_layers_that_repeat_become_one_loop() -> None:
    loops = source("llama").loops
    assert [(loop.period, loop.count) for loop in loops] == [(5, 2)]
    assert len(set(source("llama").functions)) == 7


def test_norms_of_heads_are_fused_before_their_rotation() -> None:
    parts = linears("qwen3")[0].parts
    assert [part.norm is not None for part in parts] == [True, True, False]


def test_biases_and_activations_are_fused() -> None:
    first = linears("gpt2")[2]
    assert first.bias is not None and [step.op for step in first.chain] == ["gelu_tanh"]


def test_a_residual_that_is_computed_later_is_added_by_the_later_linear() -> None:
    """Attention and MLP side by side: both results are added, each where the other is known."""
    chains = [[step.op for step in region.chain] for region in linears("gpt_neox")]
    assert sum(ops.count("add") for ops in chains) == 4  # two residuals in each of two layers


def test_a_single_key_head_is_fused_like_others() -> None:
    """Falcon cuts it out of the projection without an axis for heads."""
    parts = linears("falcon")[0].parts
    assert [(part.role, part.heads, part.rotation is not None) for part in parts] == [
        ("q", 4, True),
        ("k", 1, True),
        ("v", 1, False),
    ]


def test_casts_of_heads_are_no_steps() -> None:
    """GPT-J has queries and keys in float32 for attention, as all values are in memory."""
    assert [part.role for part in linears("gptj")[0].parts] == ["q", "k", "v"]
    rows = [region for region in source("gptj").regions if isinstance(region, RowRegion)]
    assert not [op for region in rows for op in region.ops if op.op == "copy"]


def test_squares_are_fused() -> None:
    assert [step.op for step in linears("nemotron")[2].chain] == ["relu", "square"]


def test_experts_are_one_region() -> None:
    assert sum(isinstance(region, Experts) for region in source("mixtral").regions) == 2
