"""Open an artifact: check all of it, then hand out its manifest, its files and its weights.

Nothing is mapped, parsed further or run before every file has passed: the directory holds exactly the files that the
manifest lists, as plain files with the stated lengths and SHA-256 hashes, and the header of the weights describes the
whole file. Hashing reads the weights once, at about 1.7 GB/s with SHA instructions for each core that takes part (Xeon,
2026-11).
"""

import hashlib
import mmap
import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmc.errors import ArtifactRejected, BadOption
from llmc.runtime.checked_json import is_file_name
from llmc.runtime.manifest import MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES, WEIGHTS, FileRecord, Manifest
from llmc.runtime.piece_hash import hash_file
from llmc.runtime.weights_file import WeightsHeader, header_bytes, map_tensors, read_header
from llmc.runtime.weights_memory import Loaded, read_data
from llmc.runtime.weights_stream import WeightsStream

MAX_READ_BYTES = 256 << 20
"""Largest file that `Artifact.read` returns; only the weights may be larger."""

Verify = Literal["full", "fast"]


class Artifact:
    """An artifact whose files have been checked."""

    def __init__(
        self, root: Path, manifest: Manifest, header: WeightsHeader, content: mmap.mmap, descriptor: int
    ) -> None:
        """Callers use `Artifact.open`."""
        self.root = root
        self.manifest = manifest
        self.weights_header = header
        """Type and shape of each weight; `weights_header.tensors[name].dtype` is "bfloat16" where numpy sees uint16."""
        self._content = content
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    @staticmethod
    def open(path: Path | str, *, verify: Verify = "full") -> "Artifact":
        """Check the artifact in the directory `path` and map its weights.

        "full" hashes every file. "fast" trusts the bytes of the weights: their length and header are still checked, and
        every other file is still hashed. Raises ArtifactRejected for whatever is wrong with it; a damaged, altered or
        hostile artifact raises nothing else.
        """
        _check_verify(verify)
        root = Path(path)
        found = _plain_files(root)
        if MANIFEST not in found:
            raise ArtifactRejected(f"{root}: no {MANIFEST} in it, so it is not an artifact; give what llmc build wrote")
        manifest = Manifest.read(_read(root, MANIFEST, MAX_MANIFEST_BYTES))
        _check_names(root, found, manifest.files)
        for name, record in manifest.files.items():
            if found[name] != record.bytes:
                raise ArtifactRejected(
                    f"{root / name}: {found[name]} bytes, expected {record.bytes}; build the artifact again"
                )
            if name != WEIGHTS and record.bytes > MAX_READ_BYTES:
                raise ArtifactRejected(
                    f"{root / name}: {record.bytes} bytes, at most {MAX_READ_BYTES} are allowed; build it again"
                )
        for name, record in manifest.files.items():
            if name != WEIGHTS:
                _check_hash(root, name, record)
        return Artifact(root, manifest, *_map_weights(root, manifest.files[WEIGHTS], verify))

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Read-only views of the mapped weights by name; bfloat16 is seen as uint16 and float8 as uint8, bit for bit.

        The views stay valid as long as they are referenced, as long as nobody truncates the file.
        """
        return map_tensors(self._content, self.weights_header)

    def check_weights(self, verify: Verify) -> None:
        """With "full", hash the weights of an artifact that was opened with "fast". Raises ArtifactRejected."""
        _check_verify(verify)
        if verify == "full":
            path = self.root / WEIGHTS
            _compare(path, _digest(path, self._descriptor, self.manifest.files[WEIGHTS]), self.manifest.files[WEIGHTS])

    def load_weights(self, *, verify: Verify = "full") -> "LoadedWeights":
        """Read the weights into memory. "full" hashes them on their way; an artifact that is opened for this is
        opened with "fast", since to hash the file before it is read costs more. Raises ArtifactRejected.
        """
        _check_verify(verify)
        path, record, header = self.root / WEIGHTS, self.manifest.files[WEIGHTS], self.weights_header
        before = header.start if verify == "full" else None
        try:
            size = record.bytes - header.data_start
            loaded = read_data(self._descriptor, header.data_start, size, before, hashed_by=record.pieces)
        except OSError as error:
            raise ArtifactRejected(f"{path}: cannot be read ({_reason(error)}); copy the artifact anew") from None
        return LoadedWeights(header, loaded, path, record)

    def stream_weights(self, *, verify: Verify = "full") -> WeightsStream:
        """The weights piece by piece, for who does not keep them; "full" as for `load_weights`."""
        _check_verify(verify)
        record, header = self.manifest.files[WEIGHTS], self.weights_header
        spans = {
            name: (header.data_start + info.begin, header.data_start + info.end)
            for name, info in header.tensors.items()
        }
        sha256 = record.sha256 if verify == "full" else ""
        return WeightsStream(spans, self._descriptor, self.root / WEIGHTS, record.bytes, sha256, record.pieces)

    def read(self, name: str) -> bytes:
        """The content of a file that the manifest lists, hashed again. Raises ArtifactRejected."""
        record = self.manifest.files.get(name)
        if record is None:
            raise ArtifactRejected(f"{self.root}: the manifest lists no file {name!r}; it lists {self._names()}")
        content = _read(self.root, name, MAX_READ_BYTES)
        _compare(self.root / name, hashlib.sha256(content).hexdigest(), record)
        return content

    def has(self, name: str) -> bool:
        """Whether the manifest lists a file of this name."""
        return name in self.manifest.files

    def _names(self) -> str:
        return ", ".join(sorted(self.manifest.files)[:20])


class LoadedWeights:
    """The weights of an artifact in memory. Nothing may be computed with them before `check`."""

    def __init__(self, header: WeightsHeader, loaded: Loaded, path: Path, record: FileRecord) -> None:
        """Callers use `Artifact.load_weights`."""
        self._header, self._loaded, self._path, self._record = header, loaded, path, record

    def bytes(self) -> dict[str, npt.NDArray[np.uint8]]:
        """The bytes of each weight by name, each on a boundary of 64."""
        data = self._loaded.data
        return {name: data[info.begin : info.end] for name, info in self._header.tensors.items()}

    def check(self) -> None:
        """Wait for the hash, if it was asked for, and raise ArtifactRejected if it is not the manifest's."""
        if self._loaded.hashing is not None:
            _compare(self._path, self._loaded.hashing.result(), self._record)


def _check_verify(verify: str) -> None:
    if verify not in ("full", "fast"):
        raise BadOption(f"verify: {verify!r} is not a way to check; use 'full' or 'fast'")


def _plain_files(root: Path) -> dict[str, int]:
    """Every file and empty directory ("name/") below `root` with its length. Links and devices are refused."""
    try:
        if not root.is_dir():
            raise ArtifactRejected(f"{root}: not a directory, so it is not an artifact; give what llmc build wrote")
        files: dict[str, int] = {}
        for name, status in _walk(root, ""):
            files[name] = status.st_size
            if len(files) > MAX_FILES + 1:
                raise ArtifactRejected(f"{root}: more than {MAX_FILES} files in it; give what llmc build wrote")
    except (OSError, ValueError) as error:
        raise ArtifactRejected(f"{root}: cannot be read ({_reason(error)}); check its permissions") from None
    return files


def _walk(root: Path, below: str) -> Iterator[tuple[str, os.stat_result]]:
    if below.count("/") > 32:
        raise ArtifactRejected(f"{root / below}: directories nested deeper than 32; give what llmc build wrote")
    with os.scandir(root / below) as entries:
        listing = sorted(entries, key=lambda entry: entry.name)
    if not listing and below:
        yield below, (root / below).stat()
    for entry in listing:
        name = f"{below}{entry.name}"
        if not is_file_name(name):
            raise ArtifactRejected(f"{root}: {name!r} is not a name that an artifact may contain; remove it")
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(root, f"{name}/")
            continue
        _check_plain(root / name, status)
        yield name, status


def _check_plain(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise ArtifactRejected(f"{path}: a symbolic link; an artifact has plain files only, copy what it points to")
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactRejected(f"{path}: not a plain file; remove it")
    if status.st_nlink != 1:
        raise ArtifactRejected(f"{path}: has {status.st_nlink} names (hard links), expected one; copy the file")


def _check_names(root: Path, found: Mapping[str, int], listed: Mapping[str, FileRecord]) -> None:
    for name in listed:
        if name not in found:
            raise ArtifactRejected(f"{root / name}: missing, but the manifest lists it; build the artifact again")
    for name in found:
        if name not in listed and name != MANIFEST:
            raise ArtifactRejected(f"{root / name}: not in the manifest; remove it or build the artifact again")


def _open(path: Path) -> int:
    """A descriptor of a plain file, opened without following a link or waiting for a device."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise ArtifactRejected(f"{path}: cannot be read ({_reason(error)}); check its permissions") from None
    try:
        _check_plain(path, os.fstat(descriptor))
    except ArtifactRejected:
        os.close(descriptor)
        raise
    return descriptor


def _read(root: Path, name: str, most: int) -> bytes:
    with os.fdopen(_open(root / name), "rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ArtifactRejected(f"{root / name}: more than {most} bytes; build the artifact again")
        try:
            return file.read(most)
        except OSError as error:
            raise ArtifactRejected(
                f"{root / name}: cannot be read ({_reason(error)}); copy the artifact anew"
            ) from None


def _check_hash(root: Path, name: str, record: FileRecord) -> None:
    with os.fdopen(_open(root / name), "rb") as file:
        _compare(root / name, _digest(root / name, file.fileno(), record), record)


def _digest(path: Path, descriptor: int, record: FileRecord) -> str:
    try:
        if record.pieces is not None:
            return hash_file(descriptor, os.fstat(descriptor).st_size, record.pieces)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactRejected(f"{path}: cannot be read ({_reason(error)}); copy the artifact anew") from None


def _compare(path: Path, digest: str, record: FileRecord) -> None:
    if digest != record.sha256:
        raise ArtifactRejected(
            f"{path}: damaged or altered (SHA-256 {digest[:12]}, expected {record.sha256[:12]}); copy or build the"
            " artifact again"
        )


def _map_weights(root: Path, record: FileRecord, verify: Verify) -> tuple[WeightsHeader, mmap.mmap, int]:
    """Hash, check and map the weights through one descriptor, so that what was checked is what is mapped."""
    path = root / WEIGHTS
    descriptor = _open(path)
    try:
        length = os.fstat(descriptor).st_size
        if length != record.bytes:
            raise ArtifactRejected(f"{path}: {length} bytes, expected {record.bytes}; build the artifact again")
        if verify == "full":
            _compare(path, _digest(path, descriptor, record), record)
        start = os.pread(descriptor, 8, 0)
        start = os.pread(descriptor, 8 + header_bytes(start, length, str(path)), 0)
        header = read_header(start, length, str(path))
        return header, mmap.mmap(descriptor, length, access=mmap.ACCESS_READ), os.dup(descriptor)
    except (OSError, ValueError) as error:
        raise ArtifactRejected(f"{path}: cannot be mapped ({_reason(error)}); copy the artifact anew") from None
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
