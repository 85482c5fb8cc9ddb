"""An engine in its own process: its memory is its own, and while it is not measured it is stopped."""

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from llmc.errors import BuildFailed, LlmcError, MissingTool

_HERE = Path(__file__).parent
_QUIET = ("HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "TOKENIZERS_PARALLELISM=false", "PYTHONWARNINGS=ignore")


class EngineFailed(LlmcError):
    """An engine that is measured raised an error, or its process ended."""


class EngineProcess:
    """One engine in a Python of its own."""

    def __init__(self, name: str, python: str, threads: int, *, install: str = "") -> None:
        """Start `engines/<name>.py` in the interpreter `python`; `install` is the command that installs its packages.

        Raises MissingTool if the interpreter cannot be started.
        """
        self.name = name
        self._install = install
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  -- closed in `close`
        worker, engine = _HERE / "worker.py", _HERE / "engines" / f"{name}.py"
        if shutil.which(python) is None:
            raise MissingTool(f"{name}: {python} cannot be started; name a Python with --peer-python")
        command = ["env", f"OMP_NUM_THREADS={threads}", *_QUIET, python, "-P", str(worker), str(engine)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def load(self, model: Path, threads: int) -> dict[str, Any]:
        """Load `model`: {"seconds", "import_seconds", "facts"}."""
        return self._ask(do="load", model=str(model), threads=threads)

    def prepare(self, source: Path, target: Path, format: str) -> None:
        """Convert `source` to the engine's format at `target`."""
        self._ask(do="prepare", source=str(source), target=str(target), format=format)

    def run(self, prompts: Sequence[Sequence[int]], new: int, *, fresh: bool = True) -> tuple[float, list[float], int]:
        """Seconds to the first token, seconds of each further step, and the peak resident memory in bytes."""
        reply = self._ask(do="run", prompts=[list(prompt) for prompt in prompts], new=new, fresh=fresh)
        return reply["first"], reply["steps"], reply["peak_rss"]

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32] | None:
        """[T, V] logits after each of `tokens`; None from an engine that gives none."""
        with tempfile.NamedTemporaryFile() as file:
            try:
                reply = self._ask(do="logits", tokens=list(tokens), file=file.name)
            except NotImplementedError:
                return None
            return np.fromfile(file.name, np.float32).reshape(reply["shape"])

    def pause(self) -> None:
        """Stop all its threads: what spins or sweeps in the background must not take part in others' measurements."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run on."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process."""
        self.resume()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineFailed(f"{self.name}: its process ended: {self._last_words()}")
        reply = cast(dict[str, Any], json.loads(line))
        if "error" not in reply:
            return reply
        if reply["error"] == "NotImplementedError":
            raise NotImplementedError
        if reply["error"] in ("ModuleNotFoundError", "ImportError") and self._install:
            raise MissingTool(
                f"{self.name}: {reply['message'].lower()} in that Python; install it with `{self._install}`,"
                " or name another interpreter with --peer-python"
            )
        if request["do"] == "prepare":
            raise BuildFailed(f"{self.name}: cannot convert the model: {reply['message']}: {self._last_words()}")
        raise EngineFailed(f"{self.name}: {reply['error']}: {reply['message']}")

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else "it said nothing"
