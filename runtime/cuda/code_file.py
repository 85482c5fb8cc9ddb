"""The code of all kernels of a program in one file of an artifact: sections of images, each compressed as a whole.

    add_section(file, images) -> (section, binaries)      images that are the same are kept once
    read_section(content, section, binaries, where) -> images

A section is one zlib stream, since kernels of one program resemble each other more than anything inside one of them.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from llmc.errors import ArtifactRejected
from llmc.runtime.cuda.cuda_device import Image

MOST_CODE_BYTES = 256 << 20
"""Longest section that is read."""


@dataclass(frozen=True)
class Section:
    """A part of the file."""

    offset: int
    bytes: int
    """In the file."""
    unpacked: int
    """Bytes of its images, one after another."""


@dataclass(frozen=True)
class Binary:
    """Where the code of a kernel lies in its section, and how it is launched."""

    symbol: str
    offset: int
    bytes: int
    shared: int
    """Bytes of shared memory."""
    threads: int
    """Of a block."""


def add_section(file: bytearray, images: Mapping[str, Image]) -> tuple[Section, dict[str, Binary]]:
    """Append the code of `images`, by name, to a file."""
    code = bytearray()
    offsets: dict[bytes, int] = {}
    binaries = {}
    for name, image in images.items():
        if image.content not in offsets:
            offsets[image.content] = len(code)
            code += image.content
        offset = offsets[image.content]
        binaries[name] = Binary(image.symbol, offset, len(image.content), image.shared, image.threads)
    begin = len(file)
    file += zlib.compress(bytes(code), 9)
    return Section(begin, len(file) - begin, len(code)), binaries


def read_section(content: bytes, section: Section, binaries: Mapping[str, Binary], where: str) -> dict[str, Image]:
    """The images of a section by name; `content` is the whole file. Raises ArtifactRejected if it is damaged."""
    packed = content[section.offset : section.offset + section.bytes]
    stream = zlib.decompressobj()
    try:
        code = stream.decompress(packed, section.unpacked + 1)
    except zlib.error as error:
        _reject(where, str(error))
    if len(code) != section.unpacked or not stream.eof or stream.unused_data:
        _reject(where, f"expected {section.unpacked} bytes of code")
    images: dict[Binary, Image] = {}
    for binary in binaries.values():
        if binary not in images:
            piece = code[binary.offset : binary.offset + binary.bytes]
            images[binary] = Image(piece, binary.symbol, binary.shared, binary.threads)
    return {name: images[binary] for name, binary in binaries.items()}


def _reject(where: str, reason: str) -> NoReturn:
    raise ArtifactRejected(f"{where}: the compressed code is damaged ({reason}); build the artifact again")
