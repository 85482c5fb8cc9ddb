"""What is written is what is read, byte for byte, by llmc and by the safetensors package."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import small_artifact

from llmc.errors import ArtifactRejected, BadOption, BuildFailed
from llmc.runtime.artifact import Artifact
from llmc.runtime.artifact_writer import ArtifactWriter
from llmc.runtime.manifest import FileRecord, ModelFacts, PassRecord, Ranges, RewriteRecord, Source
from llmc.runtime.program import CacheSpec


def test_weights_read_back_bit_for_bit_with_their_types(tmp_path: Path) -> None:
    artifact = Artifact.open(small_artifact.write(tmp_path / "a.llmc"))
    weights, expected = artifact.weights(), small_artifact.tensors()
    assert list(weights) == list(expected)
    for name, array in expected.items():
        assert weights[name].dtype == array.dtype
        assert weights[name].shape == array.shape
        assert weights[name].tobytes() == array.tobytes()
        assert not weights[name].flags.writeable
    types = {name: info.dtype for name, info in artifact.weights_header.tensors.items() if name in expected}
    assert types == {name: small_artifact.dtype_name(name, array) for name, array in expected.items()}


def test_every_weight_lies_on_a_64_byte_boundary_of_the_file(tmp_path: Path) -> None:
    path = small_artifact.write(tmp_path / "a.llmc")
    header = Artifact.open(path).weights_header
    assert header.data_start % 64 == 0
    begins = {name: info.begin for name, info in header.tensors.items() if not name.startswith("__pad_")}
    assert [begin % 64 for begin in begins.values()] == [0] * 7
    assert header.data_start + header.data_bytes == (path / "weights.safetensors").stat().st_size


def test_the_safetensors_package_reads_the_weights(tmp_path: Path) -> None:
    path = small_artifact.write(tmp_path / "a.llmc")
    loaded = {n: a for n, a in load_file(path / "weights.safetensors").items() if not n.startswith("__pad_")}
    expected = small_artifact.tensors()
    assert loaded.keys() == expected.keys()
    assert loaded["half"].dtype == torch.bfloat16
    assert loaded["half"].view(torch.uint16).numpy().tobytes() == expected["half"].tobytes()
    for name in expected.keys() - {"half"}:
        np.testing.assert_array_equal(loaded[name].numpy(), expected[name], strict=True)


def test_the_manifest_has_every_fact_typed(tmp_path: Path) -> None:
    path = small_artifact.write(tmp_path / "a.llmc")
    manifest = Artifact.open(path).manifest
    assert manifest.format_version == manifest.min_reader == 2
    assert manifest.llmc_version == "0.1.0"
    assert manifest.source == Source("gguf", "tiny.gguf", "ab" * 32)
    assert manifest.model == ModelFacts(50, 64, (2,), 1)
    assert manifest.ranges == Ranges(tokens=32, sequences=8, context=64)
    assert manifest.kv == (CacheSpec(2, 4, 4, "float32"),)
    assert manifest.programs == {"reference": {"graph": "program/graph.json"}}
    assert manifest.passes == (PassRecord("fuse_qkv", 1),)
    assert manifest.rewrites == (RewriteRecord(1, "fuse_qkv", "layers.0", 1e-16),)
    assert manifest.options == {"dtype": "float32"}
    assert manifest.report == {"ops": {"aten.linear.default": 3}}
    graph = small_artifact.GRAPH
    assert manifest.files["program/graph.json"] == FileRecord(hashlib.sha256(graph).hexdigest(), len(graph))
    assert manifest.content == json.loads((path / "manifest.json").read_bytes())


def test_files_read_back_and_unlisted_names_are_refused(tmp_path: Path) -> None:
    artifact = Artifact.open(small_artifact.write(tmp_path / "a.llmc"))
    assert artifact.read("program/graph.json") == small_artifact.GRAPH
    assert artifact.has("tokenizer/tokenizer.json")
    assert not artifact.has("generation.json")
    with pytest.raises(ArtifactRejected, match=r"lists no file '\.\./secret'"):
        artifact.read("../secret")


def test_a_file_altered_after_opening_is_refused_when_read(tmp_path: Path) -> None:
    path = small_artifact.write(tmp_path / "a.llmc")
    artifact = Artifact.open(path)
    (path / "program/graph.json").write_bytes(b'{"nodes": [1]')
    with pytest.raises(ArtifactRejected, match=r"graph\.json: damaged or altered"):
        artifact.read("program/graph.json")


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    first = small_artifact.write(tmp_path / "a.llmc")
    second = small_artifact.write(tmp_path / "elsewhere" / "b.llmc")
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == ["manifest.json", "program/graph.json", "tokenizer/tokenizer.json", "weights.safetensors"]
    assert [(first / n).read_bytes() for n in names] == [(second / n).read_bytes() for n in names]


def test_weights_without_tensors_are_legal(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "a.llmc") as writer:
        with writer.open_weights({}):
            pass
        writer.add_bytes("program/graph.json", b"{}")
        writer.publish(small_artifact.FACTS)
    assert Artifact.open(tmp_path / "a.llmc").weights() == {}


def test_weights_that_were_hashed_as_a_whole_are_read(tmp_path: Path) -> None:
    """As the first version of the format had it."""
    path = small_artifact.write(tmp_path / "a.llmc")

    def former(manifest: dict[str, Any]) -> None:
        content = (path / "weights.safetensors").read_bytes()
        manifest["files"]["weights.safetensors"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
        manifest.update(format_version=1, min_reader=1)

    small_artifact.reseal(path, former)
    Artifact.open(path).load_weights().check()
    flip(path / "weights.safetensors", -1)
    with pytest.raises(ArtifactRejected, match=r"weights\.safetensors: damaged or altered"):
        Artifact.open(path)
    with pytest.raises(ArtifactRejected, match=r"weights\.safetensors: damaged or altered"):
        Artifact.open(path, verify="fast").load_weights().check()


def test_fast_checking_skips_only_the_hash_of_the_weights(tmp_path: Path) -> None:
    path = small_artifact.write(tmp_path / "a.llmc")
    flip(path / "weights.safetensors", -1)
    Artifact.open(path, verify="fast")
    with pytest.raises(ArtifactRejected, match=r"weights\.safetensors: damaged or altered"):
        Artifact.open(path)
    flip(path / "program/graph.json", 3)
    with pytest.raises(ArtifactRejected, match=r"graph\.json: damaged or altered"):
        Artifact.open(path, verify="fast")
    with pytest.raises(BadOption, match="'slow' is not a way to check"):
        Artifact.open(path, verify="slow")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/./b", "sp ace", "", "manifest.json", "Program/graph.json"])
def test_names_that_could_escape_or_clash_cannot_be_added(tmp_path: Path, name: str) -> None:
    with ArtifactWriter(tmp_path / "a.llmc") as writer:
        writer.add_bytes("program/graph.json", b"{}")
        with pytest.raises(BuildFailed, match="cannot be added"):
            writer.add_bytes(name, b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("b", 3, "b was written where a was announced"),
        ("a", 3, "a has 12 bytes, announced as float32"),
        ("a", 2, "b was announced and never written"),
    ],
)
def test_weights_must_be_written_as_announced(tmp_path: Path, name: str, size: int, message: str) -> None:
    announced = {"a": ("float32", (2,)), "b": ("float32", (3,))}
    with (
        pytest.raises(BuildFailed, match=message),
        ArtifactWriter(tmp_path / "a.llmc") as writer,
        writer.open_weights(announced) as weights,
    ):
        weights.write(name, np.zeros(size, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_was_not_announced_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(BuildFailed, match="c was written where the end was announced"),
        ArtifactWriter(tmp_path / "a.llmc") as writer,
        writer.open_weights({}) as weights,
    ):
        weights.write("c", b"")


def test_strided_arrays_are_stored_in_row_major_order(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    with ArtifactWriter(tmp_path / "a.llmc") as writer:
        with writer.open_weights({"w": ("float32", (4, 3))}) as weights:
            weights.write("w", array)
        writer.add_bytes("program/graph.json", b"{}")
        writer.publish(small_artifact.FACTS)
    np.testing.assert_array_equal(Artifact.open(tmp_path / "a.llmc").weights()["w"], array)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
