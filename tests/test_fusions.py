"""What the report of a build says of a Llama-shaped layer, and of one where a fusion must not fire."""

from collections import Counter

import pytest
import torch
import transformers

import llmc
from llmc.compiled_model import CompiledModel

LAYERS = 2


def model(family: str, **changes: object) -> torch.nn.Module:
    """A small random causal LM with biases that are not zero."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        **changes,
    }
    config = transformers.CONFIG_MAPPING[family](**sizes)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


@pytest.fixture(scope="module")
def report() -> dict[str, object]:
    return llmc.compile(model("llama")).report


def test_every_idiom_of_a_llama_layer_is_one_op(report: dict[str, object]) -> None:
    ops = report["ops"]
    assert isinstance(ops, dict)
    assert ops["aten.linear.default"] == 4 * LAYERS + 1, "QKV, O, gate-up and down in each layer, and the head"
    assert ops["llmc.rms_norm.default"] == 2 * LAYERS + 1
    assert ops["llmc.rope.default"] == 2 * LAYERS
    assert ops["llmc.cached_attention.default"] == LAYERS
    assert ops["llmc.gated_act.default"] == LAYERS


def test_no_mask_is_left_in_the_graph(report: dict[str, object]) -> None:
    assert report["masks"] == {"k <= q": LAYERS}
    ops = report["ops"]
    assert isinstance(ops, dict)
    assert not {"aten.le.Tensor", "aten.arange.default", "aten.where.self", "aten.bitwise_and.Tensor"} & set(ops)


def test_every_rewrite_is_numbered_and_carries_its_error(report: dict[str, object]) -> None:
    rewrites = report["rewrites"]
    assert isinstance(rewrites, list)
    assert [done["number"] for done in rewrites] == list(range(1, len(rewrites) + 1))
    rules = Counter(done["rule"] for done in rewrites)
    assert rules["fuse_qkv"] == rules["fuse_gate_up"] == LAYERS
    assert all(0.0 <= done["error"] < 1e-3 for done in rewrites)
    assert all("layers." in done["origin"] for done in rewrites if done["rule"] == "fuse_qkv")


def test_a_window_is_named_in_the_report() -> None:
    compiled = llmc.compile(model("mistral", sliding_window=8))
    assert compiled.report["masks"] == {"(k <= q) & (q - k < 8)": LAYERS}


def test_a_projection_without_a_bias_joins_those_that_have_one() -> None:
    module = model("llama")
    for layer in module.model.layers:
        layer.self_attn.q_proj.bias = torch.nn.Parameter(torch.randn(64))
    compiled = llmc.compile(module)
    assert compiled.report["ops"]["aten.linear.default"] == 4 * LAYERS + 1
    check(compiled, module)


def test_a_projection_shared_by_two_layers_is_left_alone_and_the_report_says_why() -> None:
    module = model("llama")
    first, second = module.model.layers
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight
    compiled = llmc.compile(module)
    reasons = {miss["reason"] for miss in compiled.report["refused"] if miss["rule"] == "fuse_qkv"}
    assert len(reasons) == 1
    assert "q_proj_weight of q_proj is also used by q_proj" in reasons.pop()
    assert compiled.report["ops"]["aten.linear.default"] > 4 * LAYERS + 1
    check(compiled, module)


def check(compiled: CompiledModel, module: torch.nn.Module) -> None:
    """Logits equal those of the source."""
    tokens = torch.randint(0, 128, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens), module(tokens).logits, rtol=1e-4, atol=1e-4)
