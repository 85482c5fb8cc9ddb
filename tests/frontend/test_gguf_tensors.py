"""Tensors of GGUF files, dequantized in chunks, against the gguf package on the whole tensor."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from support.gguf_files import Tensor, gguf

from llmc.errors import UnsupportedModel
from llmc.frontend import gguf as module
from llmc.frontend.gguf import GgufFile

INTEGERS = {"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "F64": torch.float64}
NOT_DEQUANTIZED = {"Q1_0", "Q8_1", "Q8_K"}
"""Types that gguf 0.19 knows the size of but cannot dequantize; two of them are of activations only."""


@pytest.mark.parametrize("kind", [kind for kind in GGML_QUANT_SIZES if kind.name not in NOT_DEQUANTIZED])
def test_a_tensor_read_in_chunks_equals_the_tensor_read_at_once(
    kind: GGMLQuantizationType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = 37, 512
    file, stored = file_of(kind, (rows, columns), tmp_path)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 5 * columns + 1)
    value = file.read("a")
    if kind.name in INTEGERS:
        expected = torch.from_numpy(stored.copy()).view(INTEGERS[kind.name])
    else:
        with np.errstate(all="ignore"):
            expected = torch.from_numpy(dequantize(stored, kind))
    assert value.dtype == file.dtype("a") == expected.dtype
    assert same_bits(value, expected)
    assert same_bits(file.read_rows("a", 3, 19), expected[3:19])
    assert np.array_equal(file.blocks("a", 3, 19), stored[3:19])


@pytest.mark.parametrize("name", sorted(NOT_DEQUANTIZED))
def test_a_type_that_gguf_cannot_dequantize_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file, _ = file_of(GGMLQuantizationType[name], (2, 256), tmp_path)
    with pytest.raises(UnsupportedModel, match=f"a: the gguf package cannot dequantize {name}"):
        file.read("a")


def test_leading_dimensions_are_kept(tmp_path: Path) -> None:
    file, stored = file_of(GGMLQuantizationType.Q8_0, (3, 4, 5, 64), tmp_path)
    assert file.shape("a") == (3, 4, 5, 64)
    assert same_bits(
        file.read("a"), torch.from_numpy(dequantize(stored, GGMLQuantizationType.Q8_0)).reshape(3, 4, 5, 64)
    )


def test_a_vector_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(Tensor("a", (3,), 0, struct.pack("<3f", 1, 2, 3))))
    assert GgufFile(path).read("a").tolist() == [1.0, 2.0, 3.0]


def file_of(kind: GGMLQuantizationType, shape: tuple[int, ...], folder: Path) -> tuple[GgufFile, np.ndarray]:
    """A file with one tensor `a` of random blocks, and its stored rows."""
    block, size = GGML_QUANT_SIZES[kind]
    row_bytes = shape[-1] // block * size
    rows = int(np.prod(shape[:-1]))
    stored = np.random.default_rng(int(kind)).integers(0, 256, (rows, row_bytes), dtype=np.uint8)
    path = folder / "model.gguf"
    path.write_bytes(gguf(Tensor("a", shape[::-1], int(kind), stored.tobytes())))
    return GgufFile(path), stored


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits, NaNs included."""
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
