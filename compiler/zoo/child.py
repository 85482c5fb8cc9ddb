"""Run one piece of work in a forked process, so that a crash, a hang or a flood of memory is only its own."""

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import Any


def in_child(work: Callable[[], dict[str, Any]], *, seconds: float, memory_bytes: int) -> dict[str, Any]:
    """What `work` returns, computed in a forked process with a limit of time and of memory.

    Its output is discarded. A process that dies, or that outlives its time and is ended, gives `{"error": ...}`.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_child(work, writer, memory_bytes)
    os.close(writer)
    try:
        data = _read_all(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if data is None:
        return {"error": f"took longer than {seconds:g} seconds"}
    if not data:
        return {"error": f"the process died of signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no answer"}
    found: dict[str, Any] = json.loads(data)
    return found


def _be_child(work: Callable[[], dict[str, Any]], writer: int, memory_bytes: int) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    try:
        answer = work()
    except BaseException as error:  # a child must never return into its parent's code
        answer = {"error": f"{type(error).__name__}: {error}"}
    payload = json.dumps(answer).encode()
    while payload:
        payload = payload[os.write(writer, payload) :]
    os._exit(0)


def _read_all(reader: int, deadline: float) -> bytes | None:
    """Everything the other end writes, or None if it is not done by the deadline."""
    data = b""
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return data
        data += chunk
