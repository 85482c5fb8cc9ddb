"""The data of a weights file in memory, hashed on its way: several threads read, one hashes what has arrived.

The file is read straight to where it stays, so that there is one copy of it (what the system caches of the file gives
way when memory is short). Tensors keep their places, which are aligned in the file already. Where not even one copy
fits, the file is mapped instead: slower, since it then lies on small pages, but it works.
"""

import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from llmc.runtime.memory import Bytes, Region, available_bytes

_PIECE = 8 << 20
_READERS = 4
_SPARE = 1.05
"""How much more than the weights must be available for a copy of them."""


def read_data(
    descriptor: int, begin: int, size: int, digest: "hashlib._Hash | None", available: int | None = None
) -> Bytes:
    """[size] the bytes of a file from `begin` on, in huge pages; added to `digest` as well, if there is one.

    `available` is the memory that may be used, as the system says when None. Raises OSError, also if the file is
    shorter.
    """
    available = available_bytes() if available is None else available
    try:
        if available is not None and size * _SPARE > available:
            raise MemoryError
        data = Region(size).bytes
    except MemoryError:
        return _mapped(descriptor, begin, size, digest)
    pieces = [(at, min(at + _PIECE, size)) for at in range(0, size, _PIECE)]
    if len(pieces) <= 1:
        _read_piece(descriptor, begin, data, 0, size)
        if digest is not None:
            digest.update(data.data)
        return data
    with ThreadPoolExecutor(min(_READERS, len(pieces))) as pool:
        arriving: list[Future[None]] = [
            pool.submit(_read_piece, descriptor, begin, data, at, end) for at, end in pieces
        ]
        for (at, end), piece in zip(pieces, arriving, strict=True):
            piece.result()
            if digest is not None:
                digest.update(data[at:end].data)
    return data


def _read_piece(descriptor: int, begin: int, data: Bytes, at: int, end: int) -> None:
    while at < end:
        count = os.preadv(descriptor, [data[at:end].data], begin + at)
        if count == 0:
            raise OSError(f"ends at byte {begin + at}, expected more")
        at += count


def _mapped(descriptor: int, begin: int, size: int, digest: "hashlib._Hash | None") -> Bytes:
    content = mmap.mmap(descriptor, begin + size, access=mmap.ACCESS_READ)
    data: Bytes = np.frombuffer(content, np.uint8, size, begin)
    if digest is not None:
        digest.update(data.data)
    return data
