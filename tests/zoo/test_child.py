"""A family that crashes, hangs or floods the memory is one row of the table."""

import os
import signal
import time

from llmc.zoo.child import in_child


def run(work: object, seconds: float = 20.0) -> dict[str, object]:
    return in_child(work, seconds=seconds, memory_bytes=2 << 30)  # type: ignore[arg-type]


def test_what_the_work_returns_comes_back_whole() -> None:
    assert run(lambda: {"text": "x" * 300_000, "number": 1.5}) == {"text": "x" * 300_000, "number": 1.5}


def test_a_crash_is_told_by_its_signal() -> None:
    assert run(lambda: os.kill(os.getpid(), signal.SIGKILL)) == {"error": "the process died of signal 9"}


def test_an_exception_is_told_by_its_type_and_message() -> None:
    assert run(lambda: {}["missing"]) == {"error": "KeyError: 'missing'"}


def test_a_hang_is_ended() -> None:
    start = time.monotonic()
    assert run(lambda: time.sleep(60), seconds=0.5) == {"error": "took longer than 0.5 seconds"}
    assert time.monotonic() - start < 10


def test_a_flood_of_memory_is_an_error() -> None:
    assert run(lambda: {"size": len(bytearray(3 << 30))}) == {"error": "MemoryError: "}
