"""An engine in its own process: replies, errors, noise on stdout, and being stopped."""

import sys
from pathlib import Path

import numpy as np
import pytest

from llmc.bench import process as engine_process
from llmc.bench.process import EngineFailed, EngineProcess
from llmc.errors import MissingTool

ENGINE = """
import sys
import numpy as np

class Engine:
    def load(self, model, threads):
        print("a library that talks to stdout")
        if model == "broken":
            raise RuntimeError("cannot read it")
        if model == "ends":
            sys.stderr.write("out of memory\\n")
            sys.exit(3)
        return {"version": f"{model} {threads}"}

    def run(self, prompts, new, fresh):
        return 0.5, [float(len(prompts))] * (new - 1)

    def logits(self, tokens):
        if not tokens:
            raise NotImplementedError
        return np.array([tokens, tokens], np.float32)
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Start a process with an engine of this source."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "worker.py").symlink_to(Path(engine_process.__file__).with_name("worker.py"))
    monkeypatch.setattr(engine_process, "_HERE", tmp_path)
    running = []

    def start(source: str = ENGINE, python: str = sys.executable) -> EngineProcess:
        (tmp_path / "engines" / "fake.py").write_text(source)
        running.append(EngineProcess("fake", python, 1, install="pip install fake"))
        return running[-1]

    yield start
    for process in running:
        process.close()


def test_an_engine_answers_and_what_it_prints_is_no_answer(started) -> None:
    process = started()
    assert process.load(Path("model"), 3)["facts"] == {"version": "model 3"}
    first, steps, peak = process.run([[1], [2]], 4)
    assert (first, steps) == (0.5, [2.0, 2.0, 2.0])
    assert peak > 1 << 20
    process.pause()
    process.resume()
    assert np.array_equal(process.logits([5, 6]), np.array([[5, 6], [5, 6]], np.float32))


def test_an_engine_may_give_no_logits(started) -> None:
    assert started().logits([]) is None


def test_errors_of_an_engine_name_it(started) -> None:
    with pytest.raises(EngineFailed, match="fake: RuntimeError: cannot read it"):
        started().load(Path("broken"), 1)
    with pytest.raises(EngineFailed, match="fake: its process ended: out of memory"):
        started().load(Path("ends"), 1)


def test_a_missing_package_is_answered_with_the_command_that_installs_it(started) -> None:
    with pytest.raises(MissingTool, match="no module named 'no_such_engine' in that Python; install it with `pip inst"):
        started("import no_such_engine").load(Path("model"), 1)


def test_a_missing_python_is_named(started) -> None:
    with pytest.raises(MissingTool, match="/no/such/python cannot be started"):
        started(python="/no/such/python").load(Path("model"), 1)
