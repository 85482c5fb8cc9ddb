"""The hash of a large file by pieces: SHA-256 of the SHA-256s of its pieces, so that several threads can compute it.

A core hashes about 1.7 GB/s, which is less than files are read with and far less than a GPU takes up.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from llmc.runtime.cpu_features import usable_cpus

PIECE_BYTES = 8 << 20
"""Pieces of the files that llmc writes."""
MOST_THREADS = 16


def joined(digests: Iterable[bytes]) -> str:
    """The hash of a file, from those of its pieces in order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def piece_threads(pieces: int) -> int:
    """How many threads are worth starting for so many pieces: they read and hash by turns."""
    return max(1, min(pieces, MOST_THREADS, max(4, len(usable_cpus()))))


def hash_file(descriptor: int, length: int, piece: int) -> str:
    """The hash of a file of `length` bytes in pieces of `piece`, the last of which may be shorter. Raises OSError."""

    def digest(begin: int) -> bytes:
        return hashlib.sha256(os.pread(descriptor, min(piece, length - begin), begin)).digest()

    begins = range(0, length, piece)
    with ThreadPoolExecutor(piece_threads(len(begins))) as threads:
        return joined(threads.map(digest, begins))


class PieceHash:
    """The same of content that comes in parts of any lengths, one after another."""

    def __init__(self, piece: int = PIECE_BYTES) -> None:
        """`piece` is their length in bytes."""
        self._piece = piece
        self._digests: list[bytes] = []
        self._current = hashlib.sha256()
        self._filled = 0

    def update(self, content: bytes | memoryview) -> None:
        """What comes next."""
        rest = memoryview(content).cast("B")
        while len(rest):
            part = rest[: self._piece - self._filled]
            self._current.update(part)
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == self._piece:
                self._end_piece()

    def hexdigest(self) -> str:
        """The hash of all of it; nothing can follow."""
        if self._filled:
            self._end_piece()
        return joined(self._digests)

    def _end_piece(self) -> None:
        self._digests.append(self._current.digest())
        self._current, self._filled = hashlib.sha256(), 0
