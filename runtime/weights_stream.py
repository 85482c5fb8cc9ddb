"""The weights of an artifact, piece by piece: several threads read ahead and hash, straight in the caller's buffers.

So there is no copy of them in this process, and they can be larger than its memory.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llmc.errors import ArtifactRejected
from llmc.runtime.piece_hash import PIECE_BYTES, joined, piece_threads
from llmc.runtime.weights_memory import read_into

Span = tuple[int, int]
"""Bytes of a file, from the first up to the one behind the last."""


class Buffer(Protocol):
    """Memory that is filled again and again."""

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """[bytes of a piece] its content."""

    def wait(self) -> None:
        """Wait until it may be filled."""


class WeightsStream:
    """The content of a weights file, from its first byte to its last."""

    def __init__(
        self, tensors: Mapping[str, Span], descriptor: int, path: Path, length: int, sha256: str, hashed_by: int | None
    ) -> None:
        """Callers use `Artifact.stream_weights`.

        Args:
            tensors: where each weight lies in the file, in order.
            descriptor: of the file, which stays open as long as this is used.
            path: what messages call it.
            length: its bytes.
            sha256: its hash; "" where it is not to be checked.
            hashed_by: the length of the pieces by which it is hashed; None where it is hashed as a whole.
        """
        self.tensors = tensors
        self._descriptor, self._path, self._length = descriptor, path, length
        self._sha256, self._hashed_by = sha256, hashed_by
        self.piece_bytes = hashed_by or PIECE_BYTES
        """What a buffer holds."""
        self.buffers = piece_threads(-(-length // self.piece_bytes))
        """How many are worth having."""

    def pieces(self, buffers: Sequence[Buffer]) -> Generator[tuple[Buffer, int, int], None, None]:
        """Each piece of the file in order: the buffer that it fills, its begin and its end in the file.

        A buffer is filled again when the next piece is asked for and its `wait` has returned, in another thread.

        Raises ArtifactRejected if the file cannot be read, and, behind the last piece, if its hash is not the
        manifest's: nothing may be computed with it before.
        """
        waiting: deque[tuple[Buffer, int, int, Future[bytes]]] = deque()
        begins = iter(range(0, self._length, self.piece_bytes))
        digests: list[bytes] = []
        whole = hashlib.sha256()

        def fill(buffer: Buffer) -> None:
            if (begin := next(begins, None)) is not None:
                end = min(begin + self.piece_bytes, self._length)
                waiting.append((buffer, begin, end, threads.submit(self._fill, buffer, begin, end)))

        with ThreadPoolExecutor(len(buffers)) as threads:
            for buffer in buffers:
                fill(buffer)
            while waiting:
                buffer, begin, end, filled = waiting.popleft()
                try:
                    digests.append(filled.result())
                except OSError as error:
                    reason = error.strerror or str(error)
                    raise ArtifactRejected(f"{self._path}: cannot be read ({reason}); copy the artifact anew") from None
                if self._sha256 and self._hashed_by is None:
                    whole.update(buffer.bytes[: end - begin].data)
                yield buffer, begin, end
                fill(buffer)
        found = whole.hexdigest() if self._hashed_by is None else joined(digests)
        if self._sha256 and found != self._sha256:
            raise ArtifactRejected(
                f"{self._path}: damaged or altered (SHA-256 {found[:12]}, expected {self._sha256[:12]}); copy or build"
                " the artifact again"
            )

    def _fill(self, buffer: Buffer, begin: int, end: int) -> bytes:
        """Read a piece; its hash, if that is to be checked."""
        buffer.wait()
        content = buffer.bytes[: end - begin]
        read = read_into(content, self._descriptor, begin)
        if read < len(content):
            raise OSError(f"ends at byte {begin + read}, expected {self._length}")
        return hashlib.sha256(content.data).digest() if self._sha256 and self._hashed_by is not None else b""
