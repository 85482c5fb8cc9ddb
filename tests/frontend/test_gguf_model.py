"""GGUF files as Hugging Face models, against transformers' own loader, bit for bit."""

import hashlib
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, dequantize, quantize
from support.gguf_files import mutated
from support.models import model_file
from transformers.modeling_gguf_pytorch_utils import (
    GGUF_CONFIG_MAPPING,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from llmc.errors import BadInput, LlmcError, UnsupportedModel
from llmc.frontend.gguf import GgufFile
from llmc.frontend.gguf_model import GgufReader, gguf_config

VOCABULARY = 96
FIELDS: dict[str, int | float] = {
    "context_length": 128,
    "block_count": 2,
    "feed_forward_length": 64,
    "embedding_length": 64,
    "rope.dimension_count": 16,
    "rope.freq_base": 10000.0,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.layer_norm_epsilon": 1e-5,
    "vocab_size": VOCABULARY,
    "attention.key_length": 16,
    "attention.sliding_window": 32,
    "expert_count": 4,
    "expert_used_count": 2,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 8,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 128,
}
"""Metadata of a tiny model, for the architectures that have the field."""

ARCHITECTURES = {
    "bloom": "bloom",
    "falcon": "falcon",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gpt2": "gpt2",
    "llama": "llama",
    "mamba": "mamba",
    "nemotron": "nemotron",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
"""Name in the file, and in transformers."""

STORED_DIGESTS = {
    "smollm2": "785e20b3e653276b0579b744214a1186d730ba80af04f397f642d6432e5e0154",
    "gemma3": "2a1b02142882b7f30c4e6d3175b442a05ba1d9c42fde8fa5a0ece107ca301f2e",
}
"""SHA-256 of all parameters as transformers 5.23 loads them, in the order of their names."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_equals_what_transformers_loads(architecture: str, tmp_path: Path) -> None:
    path = tiny_model(architecture, tmp_path)
    file = GgufFile(path)
    module = meta_model(file)
    expected = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=module)["tensors"]
    reader = GgufReader(file, module)
    assert len(expected) > 10
    assert set(expected) <= set(reader.names()) == set(module.state_dict())
    assert [name for name, tensor in expected.items() if not torch.equal(reader.read(name), tensor)] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_configuration_equals_what_transformers_reads(architecture: str, tmp_path: Path) -> None:
    path = tiny_model(architecture, tmp_path)
    expected = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name).to_dict()
    file = GgufFile(path)
    expected["tie_word_embeddings"] = "output.weight" not in file.tensors  # transformers ignores falcon's and bloom's
    config = gguf_config(file).to_dict()
    assert {key for key in expected | config if expected.get(key) != config.get(key)} - {"_name_or_path"} == set()


@pytest.mark.parametrize("model", STORED_DIGESTS)
def test_a_real_model_has_the_parameters_that_transformers_loads(model: str) -> None:
    file = GgufFile(model_file(model))
    reader = GgufReader(file, meta_model(file))
    digest = hashlib.sha256()
    for name in sorted(reader.names()):
        if reader.key(name) == name:
            digest.update(name.encode() + reader.read(name).numpy().tobytes())
    assert digest.hexdigest() == STORED_DIGESTS[model]


@pytest.mark.slow
@pytest.mark.parametrize("model", STORED_DIGESTS)
def test_a_real_model_equals_what_transformers_loads_here(model: str) -> None:
    path = model_file(model)
    file = GgufFile(path)
    module = meta_model(file)
    reader = GgufReader(file, module)
    loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=module)
    wrong = [name for name, tensor in loaded["tensors"].items() if not torch.equal(reader.read(name), tensor)]
    assert (wrong, len(loaded["tensors"])) == ([], len(file.tensors))
    config = gguf_config(file).to_dict()
    assert {name: config[name] for name in loaded["config"] if name in config} == {
        name: value for name, value in loaded["config"].items() if name in config
    }


def test_a_head_without_a_tensor_is_tied_to_the_embedding(tmp_path: Path) -> None:
    file = GgufFile(tiny_model("llama", tmp_path, without="output.weight"))
    module = meta_model(file)
    reader = GgufReader(file, module)
    assert module.config.tie_word_embeddings is True
    assert reader.key("lm_head.weight") == reader.key("model.embed_tokens.weight") == "model.embed_tokens.weight"


def test_blocks_come_in_the_order_of_the_parameter(tmp_path: Path) -> None:
    """Llama's queries and keys have their rows interleaved in the file; the blocks are gathered, not requantized."""
    file = GgufFile(tiny_model("llama", tmp_path, kind=GGMLQuantizationType.Q8_0))
    reader = GgufReader(file, meta_model(file))
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        key = f"model.layers.1.self_attn.{part}.weight"
        blocks = reader.blocks(key)
        assert blocks is not None and blocks.type == reader.stored_type(key) == "Q8_0"
        values = torch.from_numpy(dequantize(blocks.data, GGMLQuantizationType.Q8_0))
        assert torch.equal(values, reader.read(key))
        assert torch.equal(reader.read_rows(key, 3, 17), values[3:17])
    stored = file.blocks("blk.1.attn_q.weight")
    moved = reader.blocks("model.layers.1.self_attn.q_proj.weight")
    assert moved is not None and not np.array_equal(moved.data, stored)


def test_a_parameter_whose_values_are_converted_has_no_blocks(tmp_path: Path) -> None:
    file = GgufFile(tiny_model("gpt2", tmp_path))
    reader = GgufReader(file, meta_model(file))
    assert reader.blocks("transformer.h.0.mlp.c_fc.weight") is None  # transposed
    assert reader.blocks("transformer.wte.weight") is not None
    key = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(reader.read_rows(key, 5, 9), reader.read(key)[5:9])


def test_the_factors_of_llama_3_become_its_scaling(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        head_dim=16,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = (10000.0 ** -(torch.arange(0, 16, 2) / 16) / scaled).numpy().astype(np.float32)
    assert factors.max() == pytest.approx(8.0)
    parameters = gguf_config(
        GgufFile(tiny_model("llama", tmp_path, extra={"rope_freqs.weight": factors}))
    ).rope_parameters
    assert parameters["rope_type"] == "llama3"
    assert parameters["factor"] == pytest.approx(8.0)
    assert parameters["original_max_position_embeddings"] == 8192


def test_unknown_factors_are_refused(tmp_path: Path) -> None:
    factors = np.arange(1, 9, dtype=np.float32)
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight is another scaling than llama 3's"):
        gguf_config(GgufFile(tiny_model("llama", tmp_path, extra={"rope_freqs.weight": factors})))


def test_the_factors_of_both_lengths_become_longrope(tmp_path: Path) -> None:
    short, long = np.linspace(1, 2, 6, dtype=np.float32), np.linspace(1, 30, 6, dtype=np.float32)
    extra = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    metadata = {"phi3.rope.scaling.original_context_length": 64, "phi3.rope.scaling.attn_factor": 1.25}
    file = GgufFile(tiny_model("phi3", tmp_path, metadata=metadata, extra=extra))
    config = gguf_config(file)
    for length, factors in ((64, short), (65, long)):
        scaled, attention = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", length)
        plain = 10000.0 ** -(torch.arange(0, 12, 2) / 12)  # of the 16 elements of a head 12 are rotated
        assert torch.allclose(scaled, plain / torch.from_numpy(factors))
        assert attention == 1.25
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    GgufReader(file, module)


def test_factors_of_one_length_alone_are_a_damaged_file(tmp_path: Path) -> None:
    extra = {"rope_factors_short.weight": np.ones(8, np.float32)}
    with pytest.raises(BadInput, match=r"has no rope_factors_long\.weight"):
        gguf_config(GgufFile(tiny_model("phi3", tmp_path, extra=extra)))


def test_linear_and_yarn_scaling_are_read_from_the_metadata(tmp_path: Path) -> None:
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0}
    parameters = gguf_config(GgufFile(tiny_model("llama", tmp_path, metadata=linear))).rope_parameters
    assert (parameters["rope_type"], parameters["factor"]) == ("linear", 8.0)
    yarn = linear | {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 32}
    parameters = gguf_config(GgufFile(tiny_model("llama", tmp_path, metadata=yarn))).rope_parameters
    assert (parameters["rope_type"], parameters["original_max_position_embeddings"]) == ("yarn", 32)
    assert parameters["attention_factor"] == pytest.approx(1 + 0.1 * math.log(8))


def test_a_scaling_without_a_configuration_is_refused(tmp_path: Path) -> None:
    longrope = {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 8.0}
    with pytest.raises(UnsupportedModel, match=r"llama\.rope\.scaling\.type is 'longrope', expected linear, or yarn"):
        gguf_config(GgufFile(tiny_model("llama", tmp_path, metadata=longrope)))


def test_a_tensor_that_the_model_does_not_use_is_refused(tmp_path: Path) -> None:
    file = GgufFile(tiny_model("llama", tmp_path, extra={"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}))
    with pytest.raises(
        UnsupportedModel, match=r"LlamaForCausalLM has no parameter for 1 tensors .* blk\.0\.attn_sinks"
    ):
        GgufReader(file, meta_model(file))


def test_a_missing_tensor_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    file = GgufFile(tiny_model("llama", tmp_path, without="blk.1.ffn_up.weight"))
    reader = GgufReader(file, meta_model(file))
    with pytest.raises(BadInput, match=r"has no tensor for 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        reader.read("model.layers.1.mlp.up_proj.weight")


def test_a_tensor_of_another_shape_is_refused_when_it_is_read(tmp_path: Path) -> None:
    wrong = {"blk.1.ffn_up.weight": np.zeros((64, 32), np.float32)}
    file = GgufFile(tiny_model("llama", tmp_path, without="blk.1.ffn_up.weight", extra=wrong))
    reader = GgufReader(file, meta_model(file))
    with pytest.raises(BadInput, match=r"blk\.1\.ffn_up\.weight \[64, 32\] make \[64, 32\], expected \[64, 64\]"):
        reader.read("model.layers.1.mlp.up_proj.weight")


def test_more_layers_than_tensors_are_refused_before_a_module_is_built(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path, metadata={"llama.block_count": 2_000_000_000})
    with pytest.raises(BadInput, match=r"llama\.block_count says 2000000000 layers in \d+ tensors"):
        gguf_config(GgufFile(path))


def test_an_unknown_architecture_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, "clip", {}, {"a": np.zeros(4, np.float32)})
    with pytest.raises(UnsupportedModel, match=r"architecture 'clip', expected one of bloom, .*llama"):
        gguf_config(GgufFile(path))


def test_incomplete_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, "qwen35", {}, {"a": np.zeros(4, np.float32)})
    with pytest.raises(BadInput, match=r"metadata of 'qwen35' is incomplete or wrong: KeyError\('qwen35\."):
        gguf_config(GgufFile(path))


def test_a_mutated_model_is_read_or_refused_but_nothing_else(tmp_path: Path) -> None:
    draw, content = random.Random(3), tiny_model("llama", tmp_path).read_bytes()
    header = min(info.offset for info in GgufFile(tmp_path / "model.gguf").tensors.values())
    outcomes = {"read": 0, "refused": 0}
    for _ in range(150):
        path = tmp_path / "mutated.gguf"
        path.write_bytes(mutated(content[:header], draw) + content[header:])
        try:
            file = GgufFile(path)
            reader = GgufReader(file, meta_model(file))
            for name in reader.names():
                assert tuple(reader.read(reader.key(name)).shape) == reader.shape(name)
            outcomes["read"] += 1
        except LlmcError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) >= 5, outcomes


def tiny_model(
    architecture: str,
    folder: Path,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    without: str = "",
    extra: dict[str, np.ndarray] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """A file of random tensors that transformers can load, laid out as llama.cpp does."""
    head = {"token_embd.weight": np.zeros((VOCABULARY, 64), np.float32), "output.weight": np.zeros(4, np.float32)}
    probe = folder / "probe.gguf"
    write(probe, architecture, {}, head)
    module = meta_model(GgufFile(probe))
    state, tensors = module.state_dict(), {}
    draw = np.random.default_rng(7)
    for name, parameter in get_gguf_hf_weights_map(module, TensorProcessor()).items():
        if "_exps" not in name:
            tensors[name] = draw.standard_normal(file_shape(architecture, name, tuple(state[parameter].shape)))
    for layer in range(2 if "moe" in architecture else 0):
        for part, rows in (("gate", 0), ("up", 0), ("down", 64)):
            fused = tuple(state[f"model.layers.{layer}.mlp.experts.gate_up_proj"].shape)
            shape = (fused[0], rows, fused[1] // 2) if rows else (fused[0], fused[1] // 2, fused[2])
            tensors[f"blk.{layer}.ffn_{part}_exps.weight"] = draw.standard_normal(shape)
    tensors = {name: -np.abs(value) if "ssm_a" in name else value for name, value in tensors.items() if name != without}
    path = folder / "model.gguf"
    write(path, architecture, metadata or {}, tensors | (extra or {}), kind)
    return path


def file_shape(architecture: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which llama.cpp stores a parameter."""
    transposed = ("attn_qkv.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight")
    if architecture == "gpt2" and name.endswith(transposed):
        return shape[::-1]
    if "ssm_conv1d.weight" in name:
        return shape[0], shape[2]
    return shape[1:] if "ffn_gate_inp_shexp" in name else shape


def write(
    path: Path,
    architecture: str,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
) -> None:
    writer = GGUFWriter(path, architecture)
    known = GGUF_CONFIG_MAPPING.get(ARCHITECTURES.get(architecture, ""), {})
    fields = {f"{architecture}.{key}": value for key, value in FIELDS.items() if key in known}
    fields["tokenizer.ggml.padding_token_id"] = 0
    types = {int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}
    for key, value in (fields | metadata).items():
        writer.add_key_value(key, value, types[type(value)])
    writer.add_array("tokenizer.ggml.tokens", [f"t{number}" for number in range(VOCABULARY)])
    for name, value in tensors.items():
        stored = value.astype(np.float32)
        packed = kind if stored.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(stored, packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def meta_model(file: GgufFile) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(gguf_config(file))
