"""Write an artifact so that its final name only ever shows a complete one.

All files go into a hidden directory beside the final name, each is hashed on its way and synced, the manifest comes
last, and one rename publishes the whole. Whatever stops the writer earlier, even `kill -9`, leaves the final name as
it was; a hidden directory whose writer died is removed by the next writer of the same name.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy.typing as npt

from llmc.errors import BadOption, BuildFailed
from llmc.runtime.checked_json import is_file_name
from llmc.runtime.manifest import MANIFEST, WEIGHTS, FileRecord, seal
from llmc.runtime.piece_hash import PIECE_BYTES, PieceHash
from llmc.runtime.weights_file import PADDING, WeightsHeader, tensor_bytes

_COPY_BYTES = 4 << 20
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class ArtifactWriter(AbstractContextManager["ArtifactWriter"]):
    """Writes one artifact directory; use it in a `with` statement and end with `publish`.

        with ArtifactWriter("model.llmc") as writer:
            writer.add_bytes("program/graph.json", graph)
            with writer.open_weights({"w": ("float32", (2, 3))}) as weights:
                weights.write("w", array)
            writer.publish({"llmc_version": ..., "source": ..., ...})

    Leaving the block without `publish`, by an exception or Ctrl-C, removes everything that was written.
    """

    def __init__(self, path: Path | str, *, replace: bool = False) -> None:
        """Prepare to write `path`; with `replace`, an artifact that is there already is exchanged for the new one.

        Raises BadOption if `path` exists and is not to be, or may not be, replaced.
        """
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow a link at the final name
        self.files: dict[str, FileRecord] = {}
        self._replace = replace
        self._check_target()

    def __enter__(self) -> "ArtifactWriter":
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.path)
            self._partial, self._lock = _make_partial(self.path)
        self._published = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._published:
                shutil.rmtree(self._partial, ignore_errors=True)
        finally:
            os.close(self._lock)

    def add_bytes(self, name: str, content: bytes) -> None:
        """Add a file with this content. `name` is relative: letters, digits, '.', '_', '-' and '/'."""
        with self._create(name) as file:
            file.write(content)

    def add_file(self, name: str, source: Path | str) -> None:
        """Add a copy of the file `source`."""
        with self._create(name) as file, Path(source).open("rb") as original:
            while piece := original.read(_COPY_BYTES):
                file.write(piece)

    @contextmanager
    def open_weights(self, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator["WeightsWriter"]:
        """Add weights.safetensors: `tensors` gives dtype and shape of each weight in the order of writing.

        Raises BuildFailed if the block ends before every weight has been written.
        """
        header = WeightsHeader.plan(tensors)
        with self._create(WEIGHTS, header.data_start + header.data_bytes, pieces=PIECE_BYTES) as file:
            weights = WeightsWriter(file, header)
            yield weights
            weights.finish()

    def publish(self, facts: Mapping[str, object]) -> None:
        """Write the manifest from `facts` and the hashes of the files, then put the artifact under its final name.

        `facts` are llmc_version, source, model, options, ranges, kv, programs, passes, rewrites and report as
        `llmc.runtime.manifest` describes them. Raises ArtifactRejected if a reader would refuse them.
        """
        content = seal(facts, dict(sorted(self.files.items())))
        with _writing(self.path):
            with (self._partial / MANIFEST).open("xb") as file:
                file.write(content)
                _sync(file)
            for directory, _, _ in os.walk(self._partial):
                _sync_directory(Path(directory))
            self._check_target()
            _rename(self._partial, self.path)
            self._published = True
            _sync_directory(self.path.parent)

    def _check_target(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self._replace:
            raise BadOption(f"{self.path}: exists already; choose another name or ask to replace it")
        if self.path.is_symlink() or not (self.path / MANIFEST).is_file():
            raise BadOption(f"{self.path}: exists and is not an artifact, so it is not replaced; choose another name")

    @contextmanager
    def _create(self, name: str, expected_bytes: int = 0, pieces: int | None = None) -> Iterator["_HashedFile"]:
        folded = {other.casefold() for other in (*self.files, MANIFEST)}
        if not is_file_name(name) or name.casefold() in folded:
            raise BuildFailed(f"{self.path}: {name!r} cannot be added: the name is not allowed or taken; use another")
        target = self._partial / name
        with _writing(self.path, expected_bytes):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb", buffering=0) as raw:
                file = _HashedFile(raw, hashlib.sha256() if pieces is None else PieceHash(pieces))
                yield file
                _sync(raw)
        self.files[name] = FileRecord(file.hash.hexdigest(), file.bytes, pieces)


class WeightsWriter:
    """Takes the tensors of a weights file one after another."""

    def __init__(self, file: "_HashedFile", header: WeightsHeader) -> None:
        """Callers use `ArtifactWriter.open_weights`."""
        self._file = file
        self._waiting = list(header.tensors.items())[::-1]
        file.write(header.to_bytes())

    def write(self, name: str, data: npt.NDArray[Any] | bytes | memoryview) -> None:
        """Write the next weight; arrays are stored in row-major order, whatever their numpy dtype is called.

        Raises BuildFailed if it is not this weight's turn or the data has another length than announced.
        """
        if self._waiting and self._waiting[-1][0].startswith(PADDING):
            padding = self._waiting.pop()[1]
            self._file.write(bytes(padding.end - padding.begin))
        expected, info = self._waiting.pop() if self._waiting else ("the end", None)
        if info is None or name != expected:
            raise BuildFailed(f"weights: {name} was written where {expected} was announced; write them in that order")
        content = tensor_bytes(data)
        if len(content) != info.end - info.begin:
            raise BuildFailed(
                f"weights: {name} has {len(content)} bytes, announced as {info.dtype} {list(info.shape)} with"
                f" {info.end - info.begin}; announce what is written"
            )
        self._file.write(content)

    def finish(self) -> None:
        """Raise BuildFailed if a weight is missing."""
        missing = [name for name, _ in reversed(self._waiting) if not name.startswith(PADDING)]
        if missing:
            raise BuildFailed(f"weights: {missing[0]} was announced and never written; write every weight")


class _HashedFile:
    """A file that is hashed as it is written."""

    def __init__(self, raw: FileIO, hash: "hashlib._Hash | PieceHash") -> None:
        self._raw = raw
        self.hash = hash
        self.bytes = 0

    def write(self, content: bytes | memoryview) -> None:
        self.hash.update(content)
        self.bytes += len(content)
        rest = memoryview(content)
        while rest:
            rest = rest[self._raw.write(rest) :]


@contextmanager
def _writing(path: Path, expected_bytes: int = 0) -> Iterator[None]:
    """Turn the system's refusals into BuildFailed."""
    try:
        yield
    except OSError as error:
        size = f" (this file alone needs {expected_bytes} bytes)" if expected_bytes else ""
        where = error.filename or path
        raise BuildFailed(
            f"{path}: cannot be written: {where}: {error.strerror or error}{size}; make room or choose another place"
        ) from error


def _make_partial(path: Path) -> tuple[Path, int]:
    """A new hidden directory beside `path` and a lock on it that ends with this process."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        partial.mkdir()
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if partial.stat().st_ino == os.fstat(lock).st_ino:
                return partial, lock
        os.close(lock)


def _remove_abandoned(path: Path) -> None:
    """Remove the hidden directories of writers of `path` that died: those on which nobody holds the lock."""
    for partial in path.parent.glob(f".{_literal(path.name)}.*.partial"):
        try:
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _rename(partial: Path, path: Path) -> None:
    """Put `partial` under the name `path`; an artifact that is there already goes in the same step, if possible."""
    if not path.exists():
        partial.rename(path)
        return
    if not _exchange(partial, path):
        retired = partial.with_name(f"{partial.name.removesuffix('.partial')}.old.partial")
        path.rename(retired)
        partial.rename(path)
        partial = retired
    shutil.rmtree(partial, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories atomically; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _sync(file: BinaryIO | FileIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
