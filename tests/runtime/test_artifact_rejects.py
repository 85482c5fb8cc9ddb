"""Every way in which an artifact can be wrong is refused, by name, before anything of it is used."""

import os
from pathlib import Path
from typing import Any

import pytest
from support import small_artifact
from support.small_artifact import Change, reseal, rewrite_header

from llmc.errors import ArtifactRejected
from llmc.runtime.artifact import Artifact

WEIGHTS = "weights.safetensors"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small_artifact.write(tmp_path / "a.llmc")


def edit(*keys: str | int, value: object) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def test_a_resealed_artifact_is_accepted(path: Path) -> None:
    before = (path / "manifest.json").read_bytes()
    reseal(path)
    assert (path / "manifest.json").read_bytes() == before
    rewrite_header(path, lambda header: None)
    Artifact.open(path)


@pytest.mark.parametrize("name", ["manifest.json", WEIGHTS, "program/graph.json", "tokenizer/tokenizer.json"])
def test_truncated_edited_missing_and_renamed_files_are_refused(path: Path, name: str) -> None:
    file, content = path / name, (path / name).read_bytes()
    for keep in (0, 1, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:keep])
        with pytest.raises(ArtifactRejected):
            Artifact.open(path)
    file.write_bytes(content + b"\n")
    with pytest.raises(ArtifactRejected):
        Artifact.open(path)
    for at in (0, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(ArtifactRejected):
            Artifact.open(path)
    file.write_bytes(content)
    Artifact.open(path)
    file.rename(file.with_name("renamed"))
    with pytest.raises(ArtifactRejected):
        Artifact.open(path)
    file.with_name("renamed").unlink()
    with pytest.raises(ArtifactRejected, match="no manifest.json in it" if name == "manifest.json" else "missing, but"):
        Artifact.open(path)


def test_added_files_and_directories_are_refused(path: Path) -> None:
    for name in ("extra", "program/extra.so", ".hidden", "tokenizer/deep/er"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"")
        with pytest.raises(ArtifactRejected, match="not in the manifest"):
            Artifact.open(path)
        (path / name).unlink()
    with pytest.raises(ArtifactRejected, match="not in the manifest"):
        Artifact.open(path)
    (path / "tokenizer/deep").rmdir()
    (path / "na\nme").write_bytes(b"")
    with pytest.raises(ArtifactRejected, match="not a name that an artifact may contain"):
        Artifact.open(path)


def test_links_and_devices_are_refused(path: Path, tmp_path: Path) -> None:
    file, outside = path / "program/graph.json", tmp_path / "outside"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(ArtifactRejected, match="symbolic link"):
        Artifact.open(path)
    file.unlink()
    os.link(outside, file)
    with pytest.raises(ArtifactRejected, match="hard links"):
        Artifact.open(path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ArtifactRejected, match="not a plain file"):
        Artifact.open(path)
    file.unlink()
    file.parent.rmdir()
    (tmp_path / "elsewhere").mkdir()
    outside.rename(tmp_path / "elsewhere/graph.json")
    file.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactRejected, match="symbolic link"):
        Artifact.open(path)


def test_what_is_not_a_directory_or_not_an_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRejected, match="not a directory"):
        Artifact.open(tmp_path / "nothing")
    with pytest.raises(ArtifactRejected, match=r"no manifest\.json in it"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("format", value="pt2"), "format: expected 'llmc', found 'pt2'"),
        (edit("min_reader", value=3), "needs a reader of version 3, this llmc has 2; update llmc"),
        (edit("format_version", value=3), "format_version 3 with min_reader 2 is not a version"),
        (edit("files", WEIGHTS, "pieces", value=0), "pieces: expected an integer from 1048576"),
        (edit("format_version", value="1"), "expected an integer from 1"),
        (edit("surprise", value=1), "'surprise' is unknown to this llmc"),
        (lambda manifest: manifest.pop("kv"), "'kv' is missing"),
        (edit("llmc_version", value=3), "llmc_version: expected a string, found 3"),
        (edit("source", "kind", value=None), r"source\.kind: expected a string, found None"),
        (edit("model", "vocab_size", value=0), "vocab_size: expected an integer from 1"),
        (edit("model", "vocab_size", value=True), "vocab_size: expected an integer from 1"),
        (edit("model", "vocab_size", value=50.0), "vocab_size: expected an integer from 1"),
        (edit("model", "eos_token_ids", value=[50]), r"eos_token_ids\[0\]: expected an integer from 0 to 49"),
        (edit("model", "eos_token_ids", value=2), "eos_token_ids: expected a list"),
        (edit("model", "bos_token_id", value=-1), "bos_token_id: expected an integer from 0 to 49"),
        (edit("model", "nested", value={"a": 1}), "nested: expected a plain value"),
        (edit("ranges", "tokens", value=[2, 32]), r"tokens\[0\]: expected an integer from 1 to 1"),
        (edit("ranges", "context", value=[1]), "context: expected a list of two integers"),
        (edit("ranges", "context", value=[1, 1 << 63]), r"context\[1\]: expected an integer from 1"),
        (edit("ranges", "context", value=[1, 10**400]), "found an integer beyond 64 bits"),
        (edit("kv", "layers", 0, "heads", value=0), r"layers\[0\]\.heads: expected an integer"),
        (edit("kv", "layers", 0, "dtype", value="int3"), "dtype: expected 'float32' or 'float16'"),
        (edit("programs", "reference", "graph", value="../graph"), "expected a relative file name"),
        (edit("programs", "reference", "graph", value="other.json"), "expected a file that the manifest lists"),
        (edit("programs", "reference", value=[]), "reference: expected an object"),
        (edit("passes", value=[{"name": "x"}]), r"passes\[0\]: 'changes' is missing"),
        (edit("rewrites", 0, "error", value="small"), r"rewrites\[0\]\.error: expected a number"),
        (edit("options", value=[]), "options: expected an object"),
        (edit("report", value=None), "report: expected an object"),
        (edit("files", WEIGHTS, "bytes", value=-1), "bytes: expected an integer from 0"),
        (edit("files", WEIGHTS, "bytes", value=7), "bytes, expected 7"),
        (edit("files", WEIGHTS, "sha256", value="F" * 64), "expected a string that matches"),
        (edit("files", "../../etc/passwd", value={"sha256": "0" * 64, "bytes": 1}), "expected a relative file name"),
        (edit("files", "/etc/passwd", value={"sha256": "0" * 64, "bytes": 1}), "expected a relative file name"),
        (edit("files", "PROGRAM/graph.json", value={"sha256": "0" * 64, "bytes": 1}), "differ only in case"),
        (edit("files", "gone", value={"sha256": "0" * 64, "bytes": 1}), "gone: missing, but the manifest lists it"),
        (lambda manifest: manifest["files"].pop(WEIGHTS), r"weights\.safetensors is missing"),
    ],
)
def test_wrong_fields_are_refused_even_when_the_hashes_are_right(path: Path, change: Change, message: str) -> None:
    reseal(path, change)
    with pytest.raises(ArtifactRejected, match=message):
        Artifact.open(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not the JSON that llmc writes"),
        (b"\xff\xfe", "not the JSON that llmc writes"),
        (b"[1, 2]", "expected an object, found a list of 2"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 100 + b"]" * 100, "nested deeper than 64"),
        (b'{"format": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "a": 1}', "a name occurs twice"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not the JSON that llmc writes"),
        (b'{"format": "llmc", "format_version": 1, "min_reader": 1}', "'digest' is missing"),
        (b" " * ((4 << 20) + 1), "more than 4194304 bytes"),
    ],
)
def test_a_manifest_that_is_not_json_of_ours_is_refused(path: Path, content: bytes, message: str) -> None:
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactRejected, match=message):
        Artifact.open(path)


def test_an_edit_that_keeps_the_meaning_is_refused_too(path: Path) -> None:
    file = path / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b'"tiny.gguf"', b'"Tiny.gguf"'))
    with pytest.raises(ArtifactRejected, match="altered after it was written"):
        Artifact.open(path)
    reseal(path)
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ArtifactRejected, match="altered after it was written"):
        Artifact.open(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("norm", "dtype", value="F128"), "dtype: expected 'BOOL' or"),
        (edit("norm", "dtype", value="F32"), "data_offsets: expected 32 bytes for float32"),
        (edit("norm", "shape", value=[-8]), r"shape\[0\]: expected an integer from 0"),
        (edit("norm", "shape", value=[2**32, 2**32, 0]), "expected sizes whose product fits 63 bits"),
        (edit("norm", "shape", value=[1] * 9), "shape: expected a list of at most 8"),
        (edit("norm", "shape", value=8), "shape: expected a list"),
        (edit("norm", "data_offsets", value=[0, 16]), "begins at byte 0 of the data, expected 16"),
        (edit("norm", "data_offsets", value=[1600, 1616, 1632]), "expected a list of at most 2"),
        (edit("norm", "data_offsets", value=[16, 0]), "data_offsets: expected 16 bytes"),
        (edit("norm", "extra", value=1), "'extra' is unknown"),
        (edit("norm", value="x"), "expected an object, found 'x'"),
        (edit("late", value={"dtype": "U8", "shape": [64], "data_offsets": [1 << 20, (1 << 20) + 64]}), "begins at"),
        (edit("__metadata__", value={"a": 1}), "expected a string, found 1"),
        (lambda header: header.pop("mask"), "begins at byte"),
        (lambda header: header.pop("scalar"), "begins at byte 1864 of the data, expected 1856"),
        (lambda header: header.update(x=header.pop("__pad_1616")), "not at a multiple of 64"),
    ],
)
def test_wrong_headers_of_weights_are_refused(path: Path, change: Change, message: str) -> None:
    rewrite_header(path, change)
    with pytest.raises(ArtifactRejected, match=message):
        Artifact.open(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "0 bytes are too few"),
        (b"\x01", "1 bytes are too few"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "claims 9223372036854775808 bytes"),
        ((100_000_001).to_bytes(8, "little") + b"{}", "claims 100000001 bytes"),
        ((2).to_bytes(8, "little") + b"{}", "begins at byte 10, not at a multiple"),
        ((56).to_bytes(8, "little") + b"{}" + b"x" * 54, "not the JSON"),
        ((56).to_bytes(8, "little") + b"[]" + b" " * 54, "expected an object"),
    ],
)
def test_weights_whose_start_lies_are_refused(path: Path, start: bytes, message: str) -> None:
    (path / WEIGHTS).write_bytes(start)
    reseal(path)
    with pytest.raises(ArtifactRejected, match=message):
        Artifact.open(path)
