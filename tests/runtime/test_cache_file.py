"""Files of the cache are there whole, or not at all."""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmc.errors import BadOption
from llmc.runtime.cache_file import put


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can be longer than 1000 bytes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_what_is_put_is_there(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "folder" / "file"
    for content in (b"one", b"", b"another"):
        put(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_is_full_leaves_what_was_there_and_no_trace(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "file"
    put(path, b"before")
    with pytest.raises(BadOption, match=r"file: File too large; set LLMC_CACHE to a directory that can be written"):
        put(path, bytes(2000))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"before"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(BadOption, match=rf"^cache: {tmp_path}/cache/file: .*; set LLMC_CACHE"):
        put(tmp_path / "cache" / "file", b"")
