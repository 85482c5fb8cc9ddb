"""The header of a GGUF file, walked with every length checked against the file before it is believed.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts, key-value pairs, tensor
infos, padding to the alignment, tensor data. All sizes are Python integers, so no product or sum can wrap. Nothing is
allocated for a count that the rest of the file cannot hold.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from llmc.errors import BadInput, UnsupportedModel

Value = bool | int | float | str | list[str] | npt.NDArray[Any]
"""A metadata value; an array of numbers is a view of the file."""

_SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "<u1",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
_TYPES = {int(kind): kind for kind in GGML_QUANT_SIZES}
_MAX_NAME = 65535
"""Longest key or tensor name in bytes, as the format's document has it."""
_MAX_STRINGS = 1 << 24
"""Longest array of strings; the largest vocabulary in use has 262,144 tokens and its merges 600,000."""
_MAX_SIZE = 1 << 63
_MIN_PAIR = 8 + 1 + 4 + 1
"""Bytes of the smallest key-value pair: length, key, type, value."""
_MIN_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
"""Bytes of the smallest tensor info: length, name, dimension count, dimension, type, offset."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file and how it is stored."""

    name: str
    shape: tuple[int, ...]
    """Sizes in torch's order, the contiguous one last."""
    type: GGMLQuantizationType
    offset: int
    """First byte, from the start of the file."""
    nbytes: int

    @property
    def rows(self) -> int:
        """Number of contiguous rows, over all leading dimensions."""
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Stored bytes of a row."""
        return self.nbytes // self.rows


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its data."""

    version: int
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]


def read_header(path: Path, content: memoryview) -> Header:
    """The header of the file `path`, whose bytes are `content`. Raises `BadInput` for any damage.

    Raises `UnsupportedModel` for a tensor type that the installed gguf package does not know.
    """
    walk = _Walk(path, content)
    version = walk.version()
    tensor_count, pair_count = walk.count(_MIN_TENSOR, "tensors"), walk.count(_MIN_PAIR, "key-value pairs")
    metadata: dict[str, Value] = {}
    for _ in range(pair_count):
        at = walk.position
        key = walk.name("key")
        if key in metadata:
            walk.fail(at, f"key {key!r} appears twice", "unique keys")
        at = walk.position
        kind = walk.type(key)
        if key == "general.alignment" and kind != GGUFValueType.UINT32:
            walk.fail(at, f"general.alignment is of type {kind.name}", "UINT32")
        metadata[key] = walk.value(key, kind)
    alignment = _alignment(path, metadata)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        at = walk.position
        info = walk.tensor(alignment)
        if info.name in tensors:
            walk.fail(at, f"tensor {info.name!r} appears twice", "unique names")
        tensors[info.name] = info
    start = -(-walk.position // alignment) * alignment
    placed = {name: TensorInfo(name, t.shape, t.type, start + t.offset, t.nbytes) for name, t in tensors.items()}
    _check_layout(path, len(content), placed)
    return Header(version, metadata, placed)


class _Walk:
    """A position in the file that only moves over bytes that are there."""

    def __init__(self, path: Path, content: memoryview) -> None:
        self.path, self.content, self.position = path, content, 0

    def fail(self, at: int, found: str, expected: str) -> NoReturn:
        raise BadInput(f"{self.path}: byte {at}: {found}, expected {expected}")

    def take(self, size: int, what: str) -> int:
        """Step over `size` bytes; return where they start."""
        at = self.position
        if size > len(self.content) - at:
            self.fail(at, f"{what} of {size} bytes runs past the end", f"at most {len(self.content) - at}")
        self.position += size
        return at

    def u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self.content, self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self.content, self.take(8, what))[0]
        return value

    def version(self) -> int:
        magic = bytes(self.content[self.take(4, "magic") :][:4])
        if magic != b"GGUF":
            self.fail(0, f"magic is {magic!r}", "b'GGUF'")
        version = self.u32("version")
        if version & 0xFFFF == 0 and version:
            self.fail(4, "the file is big-endian", "little-endian; convert it with gguf-convert-endian")
        if version not in (2, 3):
            self.fail(4, f"version is {version}", "2 or 3")
        return version

    def count(self, smallest: int, what: str) -> int:
        """A count of things of at least `smallest` bytes each, which the rest of the file can hold."""
        at = self.position
        count = self.u64(f"number of {what}")
        if count * smallest > len(self.content) - self.position:
            self.fail(at, f"{count} {what}", f"at most the {(len(self.content) - at) // smallest} that fit the file")
        return count

    def string(self, what: str, limit: int = _MAX_SIZE) -> str:
        length = self.u64(f"length of {what}")
        if length > limit:
            self.fail(self.position - 8, f"{what} has {length} bytes", f"at most {limit}")
        at = self.take(length, what)
        try:
            return str(self.content[at : at + length], "utf-8")
        except UnicodeDecodeError as error:
            self.fail(at, f"{what} is not UTF-8 ({error.reason})", "UTF-8")

    def name(self, what: str) -> str:
        at = self.position
        return self.string(what, _MAX_NAME) or self.fail(at, f"{what} is empty", "a name")

    def type(self, key: str) -> GGUFValueType:
        at = self.position
        number = self.u32(f"type of {key!r}")
        try:
            return GGUFValueType(number)
        except ValueError:
            self.fail(at, f"{key!r} has value type {number}", "0 to 12")

    def value(self, key: str, kind: GGUFValueType) -> Value:
        """A value of type `kind`; an array of numbers is a view of the file."""
        if kind == GGUFValueType.STRING:
            return self.string(f"value of {key!r}")
        if kind != GGUFValueType.ARRAY:
            scalar: Value = self.numbers(key, kind, 1)[0].item()
            return scalar
        at = self.position
        element = self.type(key)
        if element == GGUFValueType.ARRAY:
            self.fail(at, f"{key!r} is an array of arrays", "an array of numbers or strings")
        if element == GGUFValueType.STRING:
            return self.strings(key)
        return self.numbers(key, element, self.count(np.dtype(_SCALARS[element]).itemsize, f"elements of {key!r}"))

    def numbers(self, key: str, kind: GGUFValueType, count: int) -> npt.NDArray[Any]:
        dtype = np.dtype(_SCALARS[kind])
        at = self.take(count * dtype.itemsize, f"value of {key!r}")
        values: npt.NDArray[Any] = np.frombuffer(self.content, dtype, count, at)
        if kind != GGUFValueType.BOOL:
            return values
        if count and values.max() > 1:
            self.fail(at, f"{key!r} holds a bool that is neither 0 nor 1", "0 or 1")
        return values.view(np.bool_)

    def strings(self, key: str) -> list[str]:
        at = self.position
        count = self.count(8, f"strings in {key!r}")
        if count > _MAX_STRINGS:
            self.fail(at, f"{key!r} has {count} strings", f"at most {_MAX_STRINGS}")
        what = f"string of {key!r}"
        return [self.string(what) for _ in range(count)]

    def tensor(self, alignment: int) -> TensorInfo:
        """A tensor info, whose offset still counts from the start of the data."""
        name = self.name("tensor name")
        at = self.position
        dimensions = self.u32(f"dimension count of {name!r}")
        if not 1 <= dimensions <= 4:
            self.fail(at, f"{name!r} has {dimensions} dimensions", "1 to 4")
        at = self.position
        shape = tuple(self.u64(f"dimension of {name!r}") for _ in range(dimensions))[::-1]
        if 0 in shape or prod(shape) >= _MAX_SIZE:
            self.fail(at, f"{name!r} has shape {list(shape)}", "sizes above 0 and fewer than 2**63 elements")
        at = self.position
        kind, nbytes = self.stored(name, shape, self.u32(f"type of {name!r}"), at)
        at = self.position
        offset = self.u64(f"offset of {name!r}")
        if offset % alignment:
            self.fail(at, f"{name!r} starts at offset {offset}", f"a multiple of the alignment {alignment}")
        return TensorInfo(name, shape, kind, offset, nbytes)

    def stored(self, name: str, shape: tuple[int, ...], number: int, at: int) -> tuple[GGMLQuantizationType, int]:
        """The type with this number, and the bytes that a tensor of it takes."""
        if number not in _TYPES:
            raise UnsupportedModel(
                f"{self.path}: byte {at}: {name!r} has type {number}, expected one of {sorted(_TYPES)}"
            )
        block, size = GGML_QUANT_SIZES[_TYPES[number]]
        if shape[-1] % block:
            self.fail(
                at, f"{name!r} has rows of {shape[-1]}", f"a multiple of {block}, a block of {_TYPES[number].name}"
            )
        return _TYPES[number], prod(shape) // block * size


def _alignment(path: Path, metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise BadInput(f"{path}: general.alignment is {alignment}, expected a power of two")
    return alignment


def _check_layout(path: Path, size: int, tensors: dict[str, TensorInfo]) -> None:
    """Every tensor lies in the file and none lies on another."""
    end, before = 0, ""
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if info.offset + info.nbytes > size:
            ends = info.offset + info.nbytes
            raise BadInput(f"{path}: {info.name!r} ends at byte {ends}, expected at most the file's {size}")
        if info.offset < end:
            raise BadInput(
                f"{path}: {info.name!r} starts at byte {info.offset}, inside {before!r}, which ends at {end}"
            )
        end, before = info.offset + info.nbytes, info.name
