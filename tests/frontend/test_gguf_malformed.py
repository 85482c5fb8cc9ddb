"""Damaged GGUF files: every one is refused with `BadInput`, quickly and in little memory."""

import random
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from support.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U8,
    U32,
    U64,
    Tensor,
    array,
    gguf,
    mutated,
    pair,
    strings,
    text,
)

from llmc.errors import BadInput, UnsupportedModel
from llmc.frontend.gguf import GgufFile

ARCHITECTURE = pair("general.architecture", STRING, text("llama"))


def alignment(value: int, kind: int = U32) -> bytes:
    return pair("general.alignment", kind, struct.pack("<Q" if kind == U64 else "<I", value))


MALFORMED = {
    "empty file": (b"", "magic of 4 bytes runs past the end"),
    "magic cut": (b"GGU", "magic of 4 bytes runs past the end"),
    "bad magic": (gguf(magic=b"GGML"), "magic is b'GGML'"),
    "version 0": (gguf(version=0), "version is 0"),
    "version 1": (gguf(version=1), "version is 1"),
    "future version": (gguf(version=4), "version is 4"),
    "big-endian": (gguf(version=3 << 24), "the file is big-endian"),
    "absurd number of tensors": (gguf(tensor_count=1 << 63), "9223372036854775808 tensors"),
    "more tensors than fit": (gguf(Tensor(), tensor_count=1000), "1000 tensors"),
    "one tensor too many": (gguf(Tensor(data=b""), tensor_count=2), "runs past the end"),
    "absurd number of pairs": (gguf(pair_count=(1 << 64) - 1), "18446744073709551615 key-value pairs"),
    "one pair too many": (gguf(pair_count=2), "key is empty"),
    "absurd key size": (gguf(pairs=[text("a", 1 << 62) + bytes(16)]), "key has 4611686018427387904 bytes"),
    "key past the end": (gguf(pairs=[text("a", 4000) + bytes(16)]), "key of 4000 bytes runs past the end"),
    "empty key": (gguf(pairs=[pair("", U8, b"\1")]), "key is empty"),
    "key that is no text": (gguf(pairs=[pair(b"\xff\xfe", U8, b"\1")]), "key is not UTF-8"),
    "duplicate keys": (gguf(pairs=[ARCHITECTURE, ARCHITECTURE]), "key 'general.architecture' appears twice"),
    "unknown value type": (gguf(pairs=[pair("a", 13, bytes(8))]), "'a' has value type 13"),
    "unknown element type": (gguf(pairs=[pair("a", ARRAY, array(99, 1, bytes(8)))]), "'a' has value type 99"),
    "array of arrays": (gguf(pairs=[pair("a", ARRAY, array(ARRAY, 1, array(U8, 1, b"\1")))]), "array of arrays"),
    "array past the end": (gguf(pairs=[pair("a", ARRAY, array(I32, 1 << 60, b""))]), "elements of 'a'"),
    "array size that wraps": (gguf(pairs=[pair("a", ARRAY, array(U64, (1 << 61) + 1, b""))]), "elements of 'a'"),
    "strings past the end": (gguf(pairs=[pair("a", ARRAY, array(STRING, 1 << 40, b""))]), "strings in 'a'"),
    "string past the end": (
        gguf(pairs=[pair("a", STRING, text("b", 1 << 50))]),
        "value of 'a' of .* runs past the end",
    ),
    "string that is no text": (gguf(pairs=[pair("a", STRING, text(b"\xc3\x28"))]), "value of 'a' is not UTF-8"),
    "bool of 2": (gguf(pairs=[pair("a", BOOL, b"\2")]), "neither 0 nor 1"),
    "alignment of another type": (gguf(pairs=[alignment(32, U64)]), "general.alignment is of type UINT64"),
    "alignment 0": (gguf(pairs=[alignment(0)]), "general.alignment is 0, expected a power of two"),
    "alignment 12": (gguf(pairs=[alignment(12)]), "general.alignment is 12, expected a power of two"),
    "alignment beyond the file": (gguf(Tensor(), pairs=[alignment(1 << 31)]), "ends at byte"),
    "no dimensions": (gguf(Tensor(dimensions=0)), "has 0 dimensions"),
    "five dimensions": (gguf(Tensor(sizes=(32, 1, 1, 1, 1))), "has 5 dimensions"),
    "absurd number of dimensions": (gguf(Tensor(dimensions=0xFFFFFFFF)), "has 4294967295 dimensions"),
    "zero dimension": (gguf(Tensor(sizes=(32, 0))), "sizes above 0"),
    "number of elements overflows": (gguf(Tensor(sizes=(1 << 32, 1 << 32))), "fewer than 2..63 elements"),
    "four sizes overflow": (gguf(Tensor(sizes=(1 << 16, 1 << 16, 1 << 16, 1 << 16))), "fewer than 2..63 elements"),
    "negative size": (gguf(Tensor(sizes=((1 << 64) - 32, 1))), "fewer than 2..63 elements"),
    "number of bytes overflows": (gguf(Tensor(sizes=((1 << 62), 1))), "ends at byte"),
    "row of half a block": (gguf(Tensor(sizes=(48, 2), type=2)), "rows of 48, expected a multiple of 32"),
    "empty tensor name": (gguf(Tensor(name="")), "tensor name is empty"),
    "tensor name that is no text": (gguf(Tensor(name=b"\x80")), "tensor name is not UTF-8"),
    "duplicate tensors": (gguf(Tensor(), Tensor()), "tensor 'token_embd.weight' appears twice"),
    "unaligned offset": (gguf(Tensor(offset=8)), "starts at offset 8, expected a multiple of the alignment 32"),
    "offset past the end": (gguf(Tensor(offset=1 << 20)), "ends at byte"),
    "offset that wraps": (gguf(Tensor(offset=(1 << 64) - 32)), "ends at byte"),
    "overlapping tensors": (
        gguf(Tensor(), Tensor("b", offset=32)),
        "'b' starts at byte .*, inside 'token_embd.weight'",
    ),
    "not enough data": (gguf(Tensor(data=bytes(128))), "ends at byte"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    content, message = MALFORMED[case]
    with pytest.raises(BadInput, match=message) as caught:
        open_bytes(content, tmp_path)
    assert str(tmp_path / "model.gguf") in str(caught.value)


def test_the_file_that_the_malformed_ones_differ_from_is_accepted(tmp_path: Path) -> None:
    file = open_bytes(gguf(Tensor(data=struct.pack("<64f", *range(64)))), tmp_path)
    assert file.metadata == {"general.architecture": "llama"}
    assert file.read("token_embd.weight").tolist() == [[float(i) for i in range(32)], [float(i) for i in range(32, 64)]]


def test_an_unknown_tensor_type_is_unsupported_rather_than_damaged(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"'token_embd\.weight' has type 4, expected one of"):
        open_bytes(gguf(Tensor(type=4)), tmp_path)


def test_a_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="is one of 3 parts; join them"):
        open_bytes(gguf(pairs=[pair("split.count", U8, b"\3")]), tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"absent\.gguf: cannot be read \(No such file or directory\)"):
        GgufFile(tmp_path / "absent.gguf")


def test_rows_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    file = open_bytes(gguf(Tensor()), tmp_path)
    for start, stop in ((0, 3), (-1, 1), (2, 1)):
        with pytest.raises(BadInput, match=f"rows {start} to {stop} of 'token_embd.weight'"):
            file.blocks("token_embd.weight", start, stop)


def valid_file() -> bytes:
    """A small file with every kind of value and three storage types."""
    return gguf(
        Tensor("token_embd.weight", (64, 4), 8, bytes(range(256)) + bytes(16)),
        Tensor("blk.0.attn_norm.weight", (64,), 0, struct.pack("<64f", *range(64))),
        Tensor("blk.0.ffn_up.weight", (32, 2, 2), 2, bytes(72)),
        pairs=[
            ARCHITECTURE,
            alignment(64),
            pair("llama.block_count", U32, struct.pack("<I", 1)),
            pair("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
            pair("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
            pair("tokenizer.ggml.tokens", ARRAY, strings("a", "b", "<s>", "é")),
            pair("tokenizer.ggml.scores", ARRAY, array(F32, 4, struct.pack("<4f", 0, -1, -2, -3))),
            pair("tokenizer.ggml.flags", ARRAY, array(BOOL, 3, b"\0\1\1")),
        ],
        alignment=64,
    )


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = valid_file()
    end = GgufFile(written(content, tmp_path)).tensors["blk.0.ffn_up.weight"]
    for length in range(end.offset + end.nbytes):
        with pytest.raises(BadInput):
            open_bytes(content[:length], tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_mutated_files_are_read_or_refused_but_nothing_else(seed: int, tmp_path: Path) -> None:
    """One hundred files a seed: bits flipped, bytes and words replaced, pieces moved, removed and repeated."""
    draw = random.Random(seed)
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    for _ in range(100):
        started = time.monotonic()
        try:
            file = open_bytes(mutated(valid_file(), draw), tmp_path)
            for name in file.names():
                assert file.read(name).shape == file.shape(name)
            outcomes["read"] += 1
        except (BadInput, UnsupportedModel):
            outcomes["refused"] += 1
        assert time.monotonic() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert min(outcomes.values()) >= 10, outcomes


def written(content: bytes, folder: Path) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


def open_bytes(content: bytes, folder: Path) -> GgufFile:
    return GgufFile(written(content, folder))
