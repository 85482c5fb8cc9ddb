"""Weights read piece by piece into buffers: nothing lost, nothing filled too early, damage found; and onto a device."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support import fake_cuda
from support.interpreted_device import InterpretedDevice
from support.tiny_gpu_program import PLAN, TEXT, batch, expected, weights

from llmc.errors import ArtifactRejected
from llmc.runtime.cuda.device import Device
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.weights_stream import WeightsStream

PIECE = 50


class CheckedBuffer:
    """Knows whether it may be filled; filling it otherwise shows as a wrong content, since `wait` overwrites it."""

    def __init__(self) -> None:
        self.bytes = np.zeros(PIECE, np.uint8)
        self.free = threading.Event()
        self.free.set()

    def wait(self) -> None:
        assert self.free.wait(10), "nobody gives it back"
        self.free.clear()
        self.bytes[...] = 255


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    made = np.random.default_rng(0).integers(0, 255, 7 * PIECE + 3, np.uint8).tobytes()
    (tmp_path / "weights").write_bytes(made)
    return made


@pytest.fixture
def opened(tmp_path: Path, content: bytes) -> Iterator[int]:
    descriptor = os.open(tmp_path / "weights", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def by_pieces(content: bytes) -> str:
    digests = [hashlib.sha256(content[at : at + PIECE]).digest() for at in range(0, len(content), PIECE)]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def by_whole(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stream(descriptor: int, length: int, sha256: str, *, whole: bool = False) -> WeightsStream:
    made = WeightsStream({}, descriptor, Path("weights"), length, sha256, None if whole else PIECE)
    made.piece_bytes = PIECE
    return made


def read(given: WeightsStream, buffers: int) -> bytes:
    """All of a file, each buffer given back as soon as its content is kept."""
    kept = bytearray()
    for buffer, begin, end in given.pieces([CheckedBuffer() for _ in range(buffers)]):
        assert isinstance(buffer, CheckedBuffer) and begin == len(kept)
        kept += buffer.bytes[: end - begin].tobytes()
        buffer.free.set()
    return bytes(kept)


@pytest.mark.parametrize("buffers", [1, 3, 20])
@pytest.mark.parametrize("whole", [False, True])
def test_all_of_a_file_arrives_in_order(content: bytes, opened: int, buffers: int, whole: bool) -> None:
    sha256 = (by_whole if whole else by_pieces)(content)
    assert read(stream(opened, len(content), sha256, whole=whole), buffers) == content
    assert read(stream(opened, len(content), "", whole=whole), buffers) == content


@pytest.mark.parametrize(("whole", "hash"), [(False, by_pieces), (True, by_whole)])
def test_damage_is_found_wherever_it_is(content: bytes, opened: int, whole: bool, hash: Callable[[bytes], str]) -> None:
    for place in (0, PIECE - 1, PIECE, len(content) - 1):
        altered = bytearray(content)
        altered[place] ^= 1
        with pytest.raises(ArtifactRejected, match="weights: damaged or altered"):
            read(stream(opened, len(content), hash(bytes(altered)), whole=whole), 2)


def test_a_file_that_ends_early_is_refused(content: bytes, opened: int) -> None:
    with pytest.raises(ArtifactRejected, match=r"weights: cannot be read \(ends at byte 353, expected 354\)"):
        read(stream(opened, len(content) + 1, ""), 2)


DEVICES: list[Callable[[], Device]] = [lambda: InterpretedDevice(TEXT), fake_cuda.device]


@pytest.mark.parametrize("make", DEVICES, ids=["interpreted", "fake"])
@pytest.mark.parametrize("before", [0, 1, 49])
def test_a_program_gets_its_weights_from_a_file(tmp_path: Path, make: Callable[[], Device], before: int) -> None:
    """Whatever lies between them, and however they lie across pieces."""
    spans, content = {}, bytearray(before)
    for name, array in weights().items():
        spans[name] = (len(content), len(content) + array.nbytes)
        content += array.tobytes() + bytes(5)
    (tmp_path / "weights").write_bytes(content)
    with (tmp_path / "weights").open("rb") as file:
        given = WeightsStream(spans, file.fileno(), tmp_path, len(content), by_pieces(bytes(content)), PIECE)
        program = GpuProgram(PLAN, make(), given)
        wrong = dict(spans, scale=(spans["scale"][0], spans["scale"][1] - 4))
        with pytest.raises(ArtifactRejected, match=r"'scale' has 24 bytes, expected 28"):
            GpuProgram(PLAN, make(), WeightsStream(wrong, file.fileno(), tmp_path, len(content), "", PIECE))
        with pytest.raises(ArtifactRejected, match="damaged or altered"):
            GpuProgram(PLAN, make(), WeightsStream(spans, file.fileno(), tmp_path, len(content), "0" * 64, PIECE))
    program.allocate(2, 16)
    np.testing.assert_array_equal(program.step(batch(([1, 4, 2], 0, [0]), rows=[0, 1, 2])), expected([1, 4, 2]))
