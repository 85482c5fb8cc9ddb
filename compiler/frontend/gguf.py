"""GGUF files: metadata and tensors, the latter dequantized block by block as they are read.

A `GgufFile` speaks the file's own names. `llmc.frontend.gguf_model` translates them to those of a Hugging Face model.
"""

import mmap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, dequantize

from llmc.errors import BadInput, UnsupportedModel
from llmc.frontend.gguf_header import TensorInfo, Value, read_header

_CHUNK_ELEMENTS = 1 << 18
"""Elements dequantized at once: 1 MiB of float32, so that gguf's temporaries stay in the cache."""

_PLAIN = {
    GGMLQuantizationType.I8: torch.int8,
    GGMLQuantizationType.I16: torch.int16,
    GGMLQuantizationType.I32: torch.int32,
    GGMLQuantizationType.I64: torch.int64,
    GGMLQuantizationType.F64: torch.float64,
}
"""Types that are read as they are; every other one is dequantized to float32."""


class GgufFile:
    """A GGUF file, validated and mapped; a reader of its tensors under the file's names.

    Raises `BadInput` for a damaged file, `UnsupportedModel` for a part of a split one or an unknown tensor type.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._content = _map(self.path)
        header = read_header(self.path, self._content)
        self.metadata: dict[str, Value] = header.metadata
        """The key-value pairs; arrays of numbers are views of the file."""
        self.tensors: dict[str, TensorInfo] = header.tensors
        """Every tensor, in the file's order."""
        parts = self.metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise UnsupportedModel(f"{self.path}: is one of {parts} parts; join them with llama-gguf-split --merge")

    def names(self) -> Collection[str]:
        """Names of the tensors."""
        return self.tensors.keys()

    def key(self, name: str) -> str:
        """`name` itself. Raises `BadInput` for an unknown name."""
        if name not in self.tensors:
            raise BadInput(f"{self.path}: has no tensor {name!r}; it has {len(self.tensors)} others")
        return name

    def shape(self, key: str) -> tuple[int, ...]:
        """Sizes of the tensor in torch's order."""
        return self.tensors[self.key(key)].shape

    def dtype(self, key: str) -> torch.dtype:
        """float32, or the type itself for integers and float64."""
        return _PLAIN.get(self.tensors[self.key(key)].type, torch.float32)

    def read(self, key: str) -> torch.Tensor:
        """The whole tensor, dequantized chunk by chunk: peak memory is the result and a chunk."""
        info = self.tensors[self.key(key)]
        return self.read_rows(key, 0, info.rows).reshape(info.shape)

    def read_rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` over all leading dimensions, as [stop - start, columns].

        Raises `UnsupportedModel` for a type that the installed gguf package cannot dequantize.
        """
        info = self.tensors[self.key(key)]
        columns = info.shape[-1]
        values = torch.empty(stop - start, columns, dtype=self.dtype(key))
        target, chunk = values.numpy(), max(1, _CHUNK_ELEMENTS // columns)
        for row in range(start, stop, chunk):
            end = min(row + chunk, stop)
            target[row - start : end - start] = _values(info, self.blocks(key, row, end))
        return values

    def blocks(self, key: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """The stored bytes of rows `start` to `stop`, a view of the file of [rows, bytes of a row]."""
        info = self.tensors[self.key(key)]
        stop = info.rows if stop is None else stop
        if not 0 <= start <= stop <= info.rows:
            raise BadInput(f"{self.path}: rows {start} to {stop} of {key!r}, expected a range in its {info.rows}")
        first, size = info.offset + start * info.row_bytes, (stop - start) * info.row_bytes
        return np.frombuffer(self._content, np.uint8, size, first).reshape(stop - start, info.row_bytes)


def _map(path: Path) -> memoryview:
    """The bytes of the file, mapped for reading. The mapping lives as long as any view of it."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); expected a GGUF file") from error


def _values(info: TensorInfo, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Dequantize rows of blocks."""
    if info.type in _PLAIN:
        return blocks.view(str(_PLAIN[info.type]).removeprefix("torch."))
    try:
        with np.errstate(all="ignore"):
            return dequantize(blocks, info.type)
    except NotImplementedError as error:
        raise UnsupportedModel(f"{info.name}: the gguf package cannot dequantize {info.type.name}") from error
