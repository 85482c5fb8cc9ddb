"""Costs of regions as expressions of the sizes of a step."""

import pytest
import sympy
import torch
from torch import fx

import llmc
from llmc.codegen.cost import B, L, R, T, at, linear_cost, number_format, packed_bytes, region_cost, seconds
from llmc.codegen.target import Target
from llmc.ir.model import Model
from llmc.zoo.families import tiny

aten, ops = torch.ops.aten, torch.ops.llmc
HERE = Target.preset("avx512")


@pytest.fixture(scope="module")
def llama() -> Model:
    return llmc.compile(tiny("llama"), prove=False, program="reference")._build.model  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("format", "bits"),
    [
        ("int4", 4.75),
        ("int4m", 5),
        ("int6", 6.5),
        ("int6g16", 7),
        ("int8", 8.5),
        ("bf16", 16),
        ("f16", 16),
        ("f32", 32),
    ],
)
def test_bits_of_a_weight(format: str, bits: float) -> None:
    assert packed_bytes(960, 576, format) * 8 == 960 * 576 * bits
    assert packed_bytes(1, 1, format) * 8 == 16 * 32 * bits


@pytest.mark.parametrize(
    ("format", "bits"), [("int4g64", 4 + 24 / 64), ("int4g128", 4 + 24 / 128), ("fp8", 8 + 32 / 1024)]
)
def test_bits_where_scales_are_shared(format: str, bits: float) -> None:
    assert packed_bytes(960, 1024, format) * 8 == 960 * 1024 * bits


def test_a_linear_alone() -> None:
    cost = linear_cost(T, 960, 576, "int4")
    assert cost.flops == {"int8": 2 * T * 960 * 576}
    assert cost.activation_bytes == T * (960 + 576) * 4
    assert number_format("bf16") == "bf16" and number_format("f16") == "f32"


def test_decode_is_bound_by_memory_and_prefill_by_arithmetic() -> None:
    time = seconds(linear_cost(T, 3072, 576, "int4"), HERE)
    assert at(time, tokens=1) == pytest.approx(3072 * 576 * 4.75 / 8 / 45e9 + 1e-6)
    assert at(time, tokens=512) == pytest.approx(2 * 512 * 3072 * 576 / 860e9 + 1e-6)


def test_a_region_of_a_graph(llama: Model) -> None:
    linear = next(llama.calls(aten.linear.default))
    norm, weight = linear.all_input_nodes
    n, k = weight.meta["val"].shape
    cost = region_cost([norm, linear], llama)
    assert cost.flops["f32"] == sympy.expand(2 * T * n * k + 4 * T * k)
    assert cost.activation_bytes == sympy.expand(T * (n + k) * 4)
    scale = norm.args[1]
    assert cost.weight_bytes == n * k * 4 + (k * 4 if isinstance(scale, fx.Node) else 0)


def test_attention_reads_the_cache_once_for_each_sequence(llama: Model) -> None:
    node = next(llama.calls(ops.cached_attention.default))
    heads, size = node.args[0].meta["val"].shape[1:]
    key_heads = node.args[2].meta["val"].shape[1]
    cost = region_cost([node], llama)
    assert sympy.expand(cost.cache_bytes - (B * L + T) * key_heads * 2 * size * 4) == 0
    assert cost.flops["f32"] == T * L * heads * (4 * size + 10)
    assert cost.weight_bytes == 0


def test_the_whole_graph(llama: Model) -> None:
    cost = region_cost(llama.calls(), llama)
    table = next(llama.calls(aten.embedding.default)).args[0]
    width = table.meta["val"].shape[1]
    weights = sum(weight.meta["val"].nbytes for weight in llama.placeholders() if llama.is_weight(weight))
    read = at(cost.weight_bytes)
    assert weights - table.meta["val"].nbytes <= read - width * 4 <= weights
    assert (cost.operations.free_symbols, cost.bytes.free_symbols) == ({T, R, L}, {T, R, B, L})
    assert at(cost.bytes, tokens=8, rows=8, sequences=8, context=100) > at(cost.bytes)


def test_experts_are_read_as_far_as_tokens_choose_them() -> None:
    model = llmc.compile(tiny("mixtral"), prove=False, program="reference")._build.model  # type: ignore[union-attr]
    node = next(model.calls(ops.moe.default))
    up, down = node.args[3].meta["val"], node.args[5].meta["val"]
    experts, chosen = up.shape[0], node.args[1].meta["val"].shape[1]
    cost = region_cost([node], model)
    one = (up.nbytes + down.nbytes) / experts
    assert at(cost.weight_bytes, tokens=1) == pytest.approx(one * chosen)
    assert one * chosen < at(cost.weight_bytes, tokens=2) < at(cost.weight_bytes, tokens=1000) * 1.0001
    assert at(cost.weight_bytes, tokens=1000) == pytest.approx(one * experts)
    assert at(cost.operations) == pytest.approx(2 * chosen * (up[0].numel() + down[0].numel()))
