"""Hugging Face directories compile to what transformers loads from them, whatever the names in the checkpoint."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import llmc
from llmc.compare import Expected, source_module
from llmc.compiled_model import CompiledModel
from llmc.errors import BadInput, BadRequest, LlmcError, UnsupportedModel
from llmc.frontend.hf_build import build
from llmc.ir.weights import Source
from llmc.zoo import tiny

VOCAB = 128
TOKENS = torch.randint(3, 100, (2, 11), generator=torch.Generator().manual_seed(0))

FAMILIES = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama with tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "mixtral": ("mixtral", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "deepseek_v3": ("deepseek_v3", {}),
    "gemma3_text": ("gemma3_text", {}),
    "gpt_oss": ("gpt_oss", {}),
}


def saved(directory: Path, family: str, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    tiny(family, **changes).to(dtype).save_pretrained(directory)
    return directory


def eager_logits(directory: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.no_grad():
        return source_module(directory, dtype)(TOKENS, use_cache=False).logits.float()


def dtype_of_logits(compiled: CompiledModel) -> torch.dtype:
    assert compiled._build is not None
    return compiled._build.model.graph.output_node().all_input_nodes[0].meta["val"].dtype


def assert_same(directory: Path, **options: object) -> None:
    compiled = llmc.compile(directory, prove=False, **options)
    torch.testing.assert_close(compiled(TOKENS), eager_logits(directory), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_compiles_to_what_transformers_loads(name: str, tmp_path: Path) -> None:
    family, changes = FAMILIES[name]
    assert_same(saved(tmp_path, family, **changes))


@pytest.mark.parametrize("name", ["llama with tied embeddings", "mixtral"])
def test_a_sharded_checkpoint_gives_the_same_weights_as_a_single_file(name: str, tmp_path: Path) -> None:
    family, changes = FAMILIES[name]
    module = tiny(family, **changes)
    module.save_pretrained(tmp_path / "single")
    module.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    single, sharded = (llmc.compile(tmp_path / kind, prove=False) for kind in ("single", "sharded"))
    assert torch.equal(single(TOKENS), sharded(TOKENS))


def test_a_checkpoint_saved_without_the_prefix_of_the_model_compiles(tmp_path: Path) -> None:
    tiny("gpt2").transformer.save_pretrained(tmp_path)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    assert_same(tmp_path)


def test_experts_that_are_stored_apart_are_read_one_parameter_at_a_time(tmp_path: Path) -> None:
    saved(tmp_path, "mixtral")
    compiled = llmc.compile(tmp_path, prove=False)
    assert compiled._build is not None
    sources = {source.key: source for weight in compiled._build.model.weights.values() for source in weight.sources()}
    fused = sources["model.layers.0.mlp.experts.gate_up_proj"]
    stored = load_file(tmp_path / "model.safetensors")
    prefix = "model.layers.0.block_sparse_moe.experts.0."
    expected = torch.cat([stored[prefix + "w1.weight"], stored[prefix + "w3.weight"]])
    assert torch.equal(fused.evaluate()[0], expected)
    assert all(isinstance(source, Source) for source in sources.values())


@pytest.mark.parametrize("family", ["llama", "bloom", "gptj", "deepseek_v3", "gemma3_text"])
def test_a_bfloat16_checkpoint_computes_in_its_own_dtype_within_the_numbers_promise(
    family: str, tmp_path: Path
) -> None:
    saved(tmp_path, family, torch.bfloat16)
    compiled = llmc.compile(tmp_path, prove=False)
    assert dtype_of_logits(compiled) == torch.bfloat16
    Expected.of(partial(source_module, tmp_path), torch.bfloat16, VOCAB, 64).compare(compiled).check(family)


def test_a_checkpoint_computes_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    saved(tmp_path, "llama", torch.bfloat16)
    assert_same(tmp_path, dtype="float32")


def test_without_a_dtype_in_its_configuration_a_checkpoint_computes_in_that_of_its_tensors(tmp_path: Path) -> None:
    saved(tmp_path, "llama", torch.bfloat16)
    change_config(tmp_path, dtype=None)
    compiled = llmc.compile(tmp_path, prove=False)
    assert dtype_of_logits(compiled) == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gptj", "codegen", "gemma3_text", "deepseek_v3", "xglm"])
def test_buffers_are_real_and_those_of_a_loaded_model(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    saved(tmp_path, family, dtype)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    built = build(loaded.config, dtype)
    in_checkpoint = set(loaded.state_dict())
    ours, theirs = dict(built.named_buffers()), dict(loaded.named_buffers())
    assert {name: tensor.dtype for name, tensor in ours.items()} == {n: t.dtype for n, t in theirs.items()}
    computed = ours.keys() - in_checkpoint
    assert [name for name in computed if type(ours[name]) is not torch.Tensor] == []
    assert [name for name in computed if not torch.equal(ours[name], theirs[name])] == []
    expected = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert {name: parameter.dtype for name, parameter in built.named_parameters()} == expected


BUILD_LARGE = """
import torch, transformers
from llmc.frontend.hf_build import build
config = transformers.LlamaConfig(vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=4,
    num_attention_heads=64, num_key_value_heads=8)
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10
build(transformers.LlamaConfig(num_hidden_layers=1, hidden_size=64, intermediate_size=64), torch.bfloat16)
before = peak()
module = build(config, torch.bfloat16)
print(peak() - before, sum(p.numel() * p.itemsize for p in module.parameters()) >> 20)
"""


def test_a_large_model_is_built_without_memory_for_its_weights() -> None:
    done = subprocess.run([sys.executable, "-c", BUILD_LARGE], capture_output=True, text=True, check=True)
    grown, size = map(int, done.stdout.split())  # MiB
    assert size > 8000
    assert grown < 100


def change_config(directory: Path, **fields: object) -> None:
    content = json.loads((directory / "config.json").read_text())
    content.update(fields)
    kept = {name: value for name, value in content.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept))


def change_tensors(directory: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors by name (`.` spelled `__`); None takes one away."""
    stored = load_file(directory / "model.safetensors")
    stored.update({name.replace("__", "."): tensor for name, tensor in tensors.items()})
    kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


def assert_refused(directory: Path, error: type[LlmcError], message: str) -> None:
    with pytest.raises(error, match=message):
        llmc.compile(directory, prove=False)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return saved(tmp_path / "llama", "llama", tie_word_embeddings=False)


def test_a_missing_tensor_is_named(llama: Path) -> None:
    change_tensors(llama, model__layers__1__mlp__up_proj__weight=None)
    assert_refused(
        llama, BadInput, r"the checkpoint lacks model\.layers\.1\.mlp\.up_proj\.weight \(\d+, \d+\); expected"
    )


def test_an_untied_head_that_is_missing_is_not_taken_from_the_embedding(llama: Path) -> None:
    change_tensors(llama, lm_head__weight=None)
    assert_refused(llama, BadInput, r"the checkpoint lacks lm_head\.weight")


def test_a_tensor_of_another_shape_is_refused_before_anything_is_traced(llama: Path) -> None:
    change_tensors(llama, model__layers__0__mlp__up_proj__weight=torch.zeros(3, 5))
    assert_refused(llama, BadInput, r"up_proj\.weight is \[3, 5\] in the checkpoint; expected \[\d+, \d+\]")


def test_a_missing_expert_is_refused_when_its_parameter_is_read(tmp_path: Path) -> None:
    saved(tmp_path, "mixtral")
    change_tensors(tmp_path, model__layers__0__block_sparse_moe__experts__1__w2__weight=None)
    with pytest.raises(BadInput, match=r"mlp\.experts\.down_proj"):
        llmc.compile(tmp_path, prove=False).save(tmp_path / "out.llmc")
    assert not (tmp_path / "out.llmc").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"model.norm.weight": "../outside.safetensors"}}, r"expected a file inside the directory"),
        ({"weight_map": {"model.norm.weight": "/etc/passwd"}}, r"expected a file inside the directory"),
        ({"weight_map": {"model.norm.weight": "lost.safetensors"}}, r"lost\.safetensors: no such file"),
        ({"weight_map": ["model.norm.weight"]}, r"expected tensor names to shard files"),
        ({}, r"not an index of shards"),
    ],
    ids=["upwards", "absolute", "lost", "a list", "empty"],
)
def test_an_index_that_is_hostile_or_damaged_is_refused(llama: Path, index: object, message: str) -> None:
    (llama / "model.safetensors").rename(llama.parent / "outside.safetensors")
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(llama, BadInput, message)


def test_a_directory_without_weights_or_configuration_is_refused(llama: Path, tmp_path: Path) -> None:
    (llama / "model.safetensors").unlink()
    assert_refused(llama, BadInput, r"has neither model\.safetensors nor model\.safetensors\.index\.json")
    (llama / "config.json").unlink()
    assert_refused(llama, BadInput, r"holds no config\.json and no \.safetensors")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": "no such type"}', '{"model_type": "llama"'])
def test_a_damaged_configuration_is_refused(llama: Path, text: str) -> None:
    (llama / "config.json").write_text(text)
    assert_refused(llama, BadInput, r"config\.json cannot be read")


def test_code_in_a_directory_is_not_run(llama: Path) -> None:
    (llama / "modeling.py").write_text("raise SystemExit('this code must not run')")
    change_config(
        llama, model_type="custom", auto_map={"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"}
    )
    assert_refused(llama, BadInput, r"config\.json cannot be read")


def test_a_configuration_that_is_no_causal_language_model_is_unsupported(llama: Path) -> None:
    (llama / "config.json").write_text('{"model_type": "vit"}')
    assert_refused(llama, UnsupportedModel, r"builds no causal LM of model type 'vit'")


def test_a_quantized_checkpoint_is_unsupported(llama: Path) -> None:
    change_config(llama, quantization_config={"quant_method": "gptq", "bits": 4})
    assert_refused(llama, UnsupportedModel, r"its weights are quantized \(gptq\); expected float weights")


def test_without_a_tokenizer_token_ids_are_served_and_text_is_refused(llama: Path) -> None:
    compiled = llmc.compile(llama, prove=False)
    (generation,) = compiled.generate([[3, 4, 5]], max_new_tokens=2)
    assert len(generation.token_ids) == 2
    with pytest.raises(BadRequest, match="tokenizer"):
        compiled.generate("some text")
