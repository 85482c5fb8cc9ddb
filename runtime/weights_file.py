"""weights.safetensors: written tensor by tensor with every tensor on a 64-byte boundary, read by mapping it."""

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.errors import ArtifactRejected
from llmc.runtime.checked_json import Field, parse

ALIGNMENT = 64
"""Every tensor begins at a multiple of this many bytes from the start of the file, a cache line."""
PADDING = "__pad_"
"""Names of the tensors of bytes that fill the gaps begin with this; readers of weights do not see them."""
MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 1_000_000
MAX_RANK = 8


@dataclass(frozen=True)
class _Storage:
    code: str
    """What safetensors calls the type."""
    view: np.dtype[Any]
    """How numpy sees it; types that numpy lacks are seen as raw unsigned integers."""


_STORAGE = {
    "bool": _Storage("BOOL", np.dtype(np.bool_)),
    "uint8": _Storage("U8", np.dtype(np.uint8)),
    "int8": _Storage("I8", np.dtype(np.int8)),
    "uint16": _Storage("U16", np.dtype("<u2")),
    "int16": _Storage("I16", np.dtype("<i2")),
    "uint32": _Storage("U32", np.dtype("<u4")),
    "int32": _Storage("I32", np.dtype("<i4")),
    "uint64": _Storage("U64", np.dtype("<u8")),
    "int64": _Storage("I64", np.dtype("<i8")),
    "float16": _Storage("F16", np.dtype("<f2")),
    "bfloat16": _Storage("BF16", np.dtype("<u2")),
    "float32": _Storage("F32", np.dtype("<f4")),
    "float64": _Storage("F64", np.dtype("<f8")),
    "float8_e4m3fn": _Storage("F8_E4M3", np.dtype(np.uint8)),
    "float8_e5m2": _Storage("F8_E5M2", np.dtype(np.uint8)),
}
_NAME_OF_CODE = {storage.code: name for name, storage in _STORAGE.items()}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a weights file."""

    dtype: str
    """As torch spells it: "float32", "bfloat16", ..."""
    shape: tuple[int, ...]
    begin: int
    """Where its bytes begin, from the start of the data (not of the file)."""
    end: int


@dataclass(frozen=True)
class WeightsHeader:
    """The layout of a weights file, known before any tensor is."""

    tensors: Mapping[str, TensorInfo]
    """In the order of their bytes, padding included."""
    data_start: int
    """Where the data begins in the file: a multiple of `ALIGNMENT`."""
    start: bytes = b""
    """The file up to there, as it was read; empty for a header that was planned."""

    @property
    def data_bytes(self) -> int:
        """Length of the data, padding included."""
        return max((info.end for info in self.tensors.values()), default=0)

    @staticmethod
    def plan(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> "WeightsHeader":
        """Lay out `tensors` (name -> dtype name, shape) in the order given, each on its boundary.

        Raises ValueError for a dtype that safetensors lacks, a negative size or a reserved name.
        """
        laid: dict[str, TensorInfo] = {}
        end = 0
        for name, (dtype, shape) in tensors.items():
            if name.startswith("__") or dtype not in _STORAGE or min(shape, default=0) < 0 or len(shape) > MAX_RANK:
                raise ValueError(f"weights: {name!r} cannot be stored as {dtype} {list(shape)}")
            if end % ALIGNMENT:
                begin, end = end, end + -end % ALIGNMENT
                laid[f"{PADDING}{begin}"] = TensorInfo("uint8", (end - begin,), begin, end)
            begin, end = end, end + math.prod(shape) * _STORAGE[dtype].view.itemsize
            laid[name] = TensorInfo(dtype, shape, begin, end)
        return WeightsHeader(laid, 8 + len(_padded_header(laid)))

    def to_bytes(self) -> bytes:
        """The start of the file up to the data."""
        text = _padded_header(self.tensors)
        return len(text).to_bytes(8, "little") + text


def read_header(start: bytes, file_bytes: int, where: str) -> WeightsHeader:
    """Check the header of a weights file of `file_bytes` bytes, of which `start` holds at least the header.

    Checked: lengths against the file, names, types, shapes against byte counts, and that the tensors cover the data
    from end to end without gap or overlap, each on its boundary. Raises ArtifactRejected.
    """
    length = header_bytes(start, file_bytes, where)
    document = parse(start[8 : 8 + length], f"{where} header")
    laid: dict[str, TensorInfo] = {}
    for name, item in document.entries(MAX_TENSORS + 1):
        if name == "__metadata__":
            for _, note in item.entries(1024):
                note.text()
            continue
        laid[Field(name, f"{document.where} name").text()] = _read_tensor(item)
    laid = dict(sorted(laid.items(), key=lambda entry: (entry[1].begin, entry[1].end)))
    header = WeightsHeader(laid, 8 + length, start[: 8 + length])
    _check_cover(header, file_bytes, where)
    return header


def header_bytes(start: bytes, file_bytes: int, where: str) -> int:
    """The length that the first eight bytes state, checked against the file. Raises ArtifactRejected."""
    if file_bytes < 8 or len(start) < 8:
        raise ArtifactRejected(f"{where}: {file_bytes} bytes are too few for a header; build the artifact again")
    length = int.from_bytes(start[:8], "little")
    if length > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise ArtifactRejected(
            f"{where}: the header claims {length} bytes, but the file has {file_bytes} and {MAX_HEADER_BYTES} is the"
            " limit; build the artifact again"
        )
    if (8 + length) % ALIGNMENT:
        raise ArtifactRejected(
            f"{where}: the data begins at byte {8 + length}, not at a multiple of {ALIGNMENT}; build the artifact again"
        )
    return length


def map_tensors(content: mmap.mmap, header: WeightsHeader) -> dict[str, npt.NDArray[Any]]:
    """Read-only views of the weights in a mapped file; bfloat16 is seen as uint16 and float8 as uint8, bit for bit."""
    views: dict[str, npt.NDArray[Any]] = {}
    for name, info in header.tensors.items():
        if name.startswith(PADDING):
            continue
        view = _STORAGE[info.dtype].view
        count = math.prod(info.shape)
        flat = np.frombuffer(content, view, count, header.data_start + info.begin) if count else np.empty(0, view)
        flat.flags.writeable = False
        views[name] = flat.reshape(info.shape)
    return views


def tensor_bytes(data: npt.NDArray[Any] | bytes | memoryview) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy where they lie that way already."""
    if isinstance(data, np.ndarray):
        flat = np.ascontiguousarray(data).reshape(-1)
        return flat.view(np.uint8).data if flat.size else memoryview(b"")
    return memoryview(data).cast("B")


def _padded_header(tensors: Mapping[str, TensorInfo]) -> bytes:
    entries = {
        name: {"dtype": _STORAGE[info.dtype].code, "shape": list(info.shape), "data_offsets": [info.begin, info.end]}
        for name, info in tensors.items()
    }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    return text + b" " * (-(8 + len(text)) % ALIGNMENT)


def _read_tensor(field: Field) -> TensorInfo:
    members = field.members(("dtype", "shape", "data_offsets"))
    dtype = _NAME_OF_CODE[members["dtype"].choice(*_NAME_OF_CODE)]
    shape = tuple(size.integer(0, (1 << 63) - 1) for size in members["shape"].items(MAX_RANK))
    offsets = members["data_offsets"].items(2)
    if len(offsets) != 2:
        members["data_offsets"].reject("a list of two integers")
    begin, end = (offset.integer(0, (1 << 63) - 1) for offset in offsets)
    if math.prod(max(size, 1) for size in shape) * _STORAGE[dtype].view.itemsize >= 1 << 63:
        members["shape"].reject("sizes whose product fits 63 bits")
    expected = math.prod(shape) * _STORAGE[dtype].view.itemsize
    if end - begin != expected:
        members["data_offsets"].reject(f"{expected} bytes for {dtype} {list(shape)}")
    return TensorInfo(dtype, shape, begin, end)


def _check_cover(header: WeightsHeader, file_bytes: int, where: str) -> None:
    at = 0
    for name, info in header.tensors.items():
        if info.begin != at:
            raise ArtifactRejected(
                f"{where}: {name!r} begins at byte {info.begin} of the data, expected {at}; build the artifact again"
            )
        if info.begin % ALIGNMENT and not name.startswith(PADDING):
            raise ArtifactRejected(
                f"{where}: {name!r} begins at byte {info.begin} of the data, not at a multiple of {ALIGNMENT};"
                " build the artifact again"
            )
        at = info.end
    if header.data_start + at != file_bytes:
        raise ArtifactRejected(
            f"{where}: the file has {file_bytes} bytes, its tensors end at {header.data_start + at};"
            " build the artifact again"
        )
