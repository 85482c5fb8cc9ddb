"""A writer of small GGUF files that writes whatever it is told, right or wrong."""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
"""Numbers of the value types."""


def text(content: str | bytes, length: int | None = None) -> bytes:
    """A string: its length, then its bytes. `length` is what the length says when it lies."""
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key, the type of its value, and the bytes of the value."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, elements: bytes) -> bytes:
    """The value of an array: type, count, elements."""
    return struct.pack("<IQ", kind, count) + elements


def strings(*contents: str) -> bytes:
    """The value of an array of strings."""
    return array(STRING, len(contents), b"".join(map(text, contents)))


@dataclass(frozen=True)
class Tensor:
    """A tensor info, and the data that is put at the next aligned place."""

    name: str | bytes = "token_embd.weight"
    sizes: Sequence[int] = (32, 2)
    """As the file has them, the contiguous size first."""
    type: int = 0
    data: bytes = bytes(256)
    offset: int | None = None
    """What the offset says when it is not where the data is."""
    dimensions: int | None = None
    """What the dimension count says when it lies."""

    def info(self, offset: int) -> bytes:
        """The tensor info."""
        count = len(self.sizes) if self.dimensions is None else self.dimensions
        place = offset if self.offset is None else self.offset
        sizes = b"".join(struct.pack("<Q", size) for size in self.sizes)
        return text(self.name) + struct.pack("<I", count) + sizes + struct.pack("<IQ", self.type, place)


def gguf(
    *tensors: Tensor,
    pairs: Sequence[bytes] = (pair("general.architecture", STRING, text("llama")),),
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    pair_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """The bytes of a file. Without lies, a valid one."""
    infos, data = b"", b""
    for tensor in tensors:
        infos += tensor.info(len(data))
        data += tensor.data + bytes(-len(tensor.data) % alignment)
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + infos
    return header + bytes(-len(header) % alignment) + data


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The bytes with one to three changes: bits flipped, bytes and words replaced, pieces removed and repeated."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(data) - 8)
        match draw.randrange(6):
            case 0:
                data[place] ^= 1 << draw.randrange(8)
            case 1:
                data[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                data[place : place + 4] = struct.pack("<I", draw.choice((0, 1, 1 << 16, 1 << 31, 0xFFFFFFFF)))
            case 3:
                data[place : place + 8] = struct.pack("<Q", draw.choice((0, 1 << 32, 1 << 61, 1 << 63, (1 << 64) - 1)))
            case 4:
                del data[place : place + draw.randint(1, 8)]
            case _:
                data[place:place] = data[place : place + draw.randint(1, 64)]
    return bytes(data)
