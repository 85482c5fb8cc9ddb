"""Safetensors checkpoints, sharded and hostile, and live modules."""

import json
import struct
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from llmc.errors import BadInput
from llmc.frontend.checkpoint import ModuleReader, SafetensorsReader
from llmc.frontend.conversion import translated
from llmc.ir.weights import Source

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16)}


def sharded(folder: Path, weight_map: object) -> Path:
    """A directory with a tensor in each of two shards, and an index that says what it is told to."""
    for number, (name, tensor) in enumerate(TENSORS.items(), 1):
        save_file({name: tensor}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


GOOD_MAP = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}


def test_a_file_a_directory_and_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    save_file(TENSORS, tmp_path / "one" / "model.safetensors")
    for path in (tmp_path / "one" / "model.safetensors", tmp_path / "one", sharded(tmp_path / "two", GOOD_MAP)):
        reader = SafetensorsReader(path)
        assert sorted(reader.names()) == ["a.weight", "b.weight"]
        for name, tensor in TENSORS.items():
            assert (reader.key(name), reader.shape(name), reader.dtype(name)) == (
                name,
                tuple(tensor.shape),
                tensor.dtype,
            )
            assert torch.equal(reader.read(name), tensor)


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=r"has no tensor 'c\.weight'; it has 2 others"):
        Source.of(SafetensorsReader(tmp_path), "c.weight")


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../outside.safetensors", "expected a file inside the directory"),
        ("/etc/passwd", "expected a file inside the directory"),
        ("sub/../../outside.safetensors", "expected a file inside the directory"),
        ("..\\outside.safetensors", "expected a file inside the directory"),
        ("a\0.safetensors", "expected a file inside the directory"),
        ("", "expected a file inside the directory"),
        ("link.safetensors", r"link\.safetensors leads to .*outside\.safetensors, expected a file inside"),
        ("folder/outside.safetensors", r"leads to .*outside\.safetensors, expected a file inside"),
        ("absent.safetensors", "no such file"),
        ("model-00002-of-00002.safetensors", r"has no tensor 'a\.weight', which .* places there"),
        (3, "weight_map is no object of strings"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(shard: object, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a.weight": torch.ones(1)}, tmp_path / "outside.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (folder / "folder").symlink_to(tmp_path)
    with pytest.raises(BadInput, match=message):
        SafetensorsReader(sharded(folder, GOOD_MAP | {"a.weight": shard}))


def test_a_single_file_that_links_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(TENSORS, tmp_path / "outside.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(BadInput, match=r"model\.safetensors leads to .*outside"):
        SafetensorsReader(folder)


def test_the_links_of_the_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "12ab", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file(TENSORS, blobs / "34cd")
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/34cd"))
    assert torch.equal(SafetensorsReader(snapshot).read("a.weight"), TENSORS["a.weight"])


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}", b'{"weight_map": []}', b"\xff", b"[" * 100_000])
def test_a_damaged_index_is_refused(index: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(BadInput, match=r"index\.json: (not an index of shards|weight_map is no object)"):
        SafetensorsReader(tmp_path)


def test_a_directory_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadInput, match=r"has neither model\.safetensors nor .*; llmc does not read pickled weights"):
        SafetensorsReader(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 60) + b'{"a.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,99]}}',
    ],
)
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=r"model\.safetensors: not a safetensors file"):
        SafetensorsReader(tmp_path)


class Tied(nn.Module):
    """A module with two names for a parameter, a view of it that is another tensor, and buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4)
        self.head.weight = self.embed.weight
        self.register_buffer("shared", self.embed.weight.detach())
        self.register_buffer("part", self.embed.weight.detach()[:2])
        self.register_buffer("frequencies", torch.arange(3.0), persistent=False)


def test_tied_names_of_a_module_have_one_key_and_nothing_is_copied() -> None:
    module = Tied()
    reader = ModuleReader(module)
    assert set(reader.names()) == {"embed.weight", "head.weight", "head.bias", "shared", "part", "frequencies"}
    keys = {name: reader.key(name) for name in reader.names()}
    assert keys["head.weight"] == keys["shared"] == keys["embed.weight"] == "embed.weight"
    assert (keys["part"], keys["frequencies"], keys["head.bias"]) == ("part", "frequencies", "head.bias")
    assert Source.of(reader, "head.weight") == Source.of(reader, "embed.weight")
    assert reader.read("embed.weight").data_ptr() == module.embed.weight.data_ptr()
    assert not reader.read("embed.weight").requires_grad


def test_a_module_on_the_meta_device_has_shapes_but_no_values() -> None:
    with torch.device("meta"):
        reader = ModuleReader(Tied())
    assert reader.key("head.weight") == "embed.weight" != reader.key("shared")
    assert reader.shape("embed.weight") == (4, 3)
    with pytest.raises(BadInput, match=r"embed\.weight: is on the meta device and has no values"):
        reader.read("embed.weight")


def test_a_checkpoint_of_separate_experts_is_read_as_the_fused_parameters_of_the_model(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=12,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(tmp_path)
    base = SafetensorsReader(tmp_path)
    assert "model.layers.0.block_sparse_moe.experts.11.w1.weight" in base.names()
    with torch.device("meta"):
        empty = transformers.MixtralForCausalLM(config)
    reader = translated(base, empty)
    expected = model.state_dict()
    assert set(reader.names()) == set(expected)
    assert [name for name in expected if not torch.equal(reader.read(name), expected[name])] == []
    assert len(reader.sources("model.layers.0.mlp.experts.gate_up_proj")) == 24


def test_a_checkpoint_without_the_prefix_of_the_model_is_read_by_the_models_names(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaModel(config).save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    reader = translated(SafetensorsReader(tmp_path), model)
    assert set(model.state_dict()) - set(reader.names()) == {"lm_head.weight"}
    assert reader.sources("model.norm.weight") == ["norm.weight"]
