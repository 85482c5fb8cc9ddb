"""The data of a weights file in memory, hashed on its way: several threads read, others hash what has arrived.

The file is read straight to where it stays, so that there is one copy of it (what the system caches of the file gives
way when memory is short). Tensors keep their places, which are aligned in the file already. Where not even one copy
fits, the file is mapped instead: slower, since it then lies on small pages, but it works.
"""

import hashlib
import mmap
import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from llmc.runtime.memory import Bytes, Region, available_bytes
from llmc.runtime.piece_hash import joined, piece_threads

_PIECE = 8 << 20
_READERS = 4
_SPARE = 1.05
"""How much more than the weights must be available for a copy of them."""


@dataclass(frozen=True)
class Loaded:
    """Data that is in memory, while its hash may still be under way."""

    data: Bytes
    hashing: "Future[str] | None"
    """The SHA-256 of what goes before the data and the data; None if it was not asked for."""


def read_data(
    descriptor: int,
    begin: int,
    size: int,
    before: bytes | None = None,
    available: int | None = None,
    hashed_by: int | None = None,
) -> Loaded:
    """[size] the bytes of a file from `begin` on, in huge pages; hashed behind the bytes `before`, unless that is None.

    `available` is the memory that may be used, as the system says when None. `hashed_by` is the length of the pieces by
    which the file is hashed (see `llmc.runtime.piece_hash`), None where it is hashed as a whole. Raises OSError, also
    if the file is shorter.
    """
    available = available_bytes() if available is None else available
    pieces = [(at, min(at + _PIECE, size)) for at in range(0, size, _PIECE)]
    reading: list[Future[None]] = []
    try:
        if available is not None and size * _SPARE > available:
            raise MemoryError
        data = Region(size).bytes
        readers = ThreadPoolExecutor(min(_READERS, len(pieces)) or 1)
        reading = [readers.submit(_read_piece, descriptor, begin, data, at, end) for at, end in pieces]
        readers.shutdown(wait=False)
    except MemoryError:
        content = mmap.mmap(descriptor, begin + size, access=mmap.ACCESS_READ)
        data = np.frombuffer(content, np.uint8, size, begin)
    hashing = None
    if before is not None and hashed_by is not None:
        ends = [end for _, end in pieces]
        begins = range(0, begin + size, hashed_by)
        hashers = ThreadPoolExecutor(piece_threads(len(begins)))
        digests = [
            hashers.submit(_hash_piece, before, data, ends, reading, at, min(at + hashed_by, begin + size))
            for at in begins
        ]
        hashing = hashers.submit(lambda: joined(digest.result() for digest in digests))
        hashers.shutdown(wait=False)
    elif before is not None:
        hasher = ThreadPoolExecutor(1)
        hashing = hasher.submit(_hash, before, data, [end for _, end in pieces], reading)
        hasher.shutdown(wait=False)
    for piece in reading:
        piece.result()
    return Loaded(data, hashing)


def read_into(content: Bytes, descriptor: int, begin: int) -> int:
    """Fill `content` with the bytes of a file from `begin` on; how many there are, less if it ends before."""
    read = 0
    while read < len(content):
        count = os.preadv(descriptor, [content[read:].data], begin + read)
        if count == 0:
            break
        read += count
    return read


def _read_piece(descriptor: int, begin: int, data: Bytes, at: int, end: int) -> None:
    read = read_into(data[at:end], descriptor, begin + at)
    if read < end - at:
        raise OSError(f"ends at byte {begin + at + read}, expected more")


def _hash_piece(
    before: bytes, data: Bytes, ends: Sequence[int], reading: "Sequence[Future[None]]", begin: int, end: int
) -> bytes:
    """Hash the bytes of a file from `begin` to `end`, once they have arrived: `before`, which `data` follows."""
    first, last = max(begin - len(before), 0), max(end - len(before), 0)
    for place in range(bisect_right(ends, first), bisect_left(ends, last) + 1) if last else ():
        if reading:
            reading[place].result()
    digest = hashlib.sha256(before[begin:end])
    digest.update(data[first:last].data)
    return digest.digest()


def _hash(before: bytes, data: Bytes, ends: Sequence[int], reading: "Sequence[Future[None]]") -> str:
    """Hash what has arrived in as few calls as possible: between them this thread may have to wait for others."""
    digest = hashlib.sha256(before)
    done = 0
    while done < len(reading):
        reading[done].result()
        here = done + 1
        while here < len(reading) and reading[here].done():
            here += 1
        digest.update(data[ends[done - 1] if done else 0 : ends[here - 1]].data)
        done = here
    if not reading:
        digest.update(data.data)  # mapped
    return digest.hexdigest()
