"""Whatever stops a writer, the final name shows the old artifact, the new one, or nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import small_artifact

from llmc.errors import ArtifactRejected, BadOption, BuildFailed
from llmc.runtime import artifact_writer
from llmc.runtime.artifact import Artifact
from llmc.runtime.artifact_writer import ArtifactWriter

WRITE_FOREVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support import small_artifact
facts = dict(small_artifact.FACTS)
while True:
    for version in ("1", "2"):
        facts["llmc_version"] = version
        small_artifact.write(Path(sys.argv[1]), replace=True, facts=facts)
        print("written", flush=True)
"""

WRITE_SLOWLY = """
import sys, time
from llmc.runtime.artifact_writer import ArtifactWriter
try:
    with ArtifactWriter(sys.argv[1], replace=True) as writer:
        writer.add_bytes("program/graph.json", b"{}")
        print("written", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("stopped")
"""


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ArtifactWriter(tmp_path / "a.llmc") as writer:
        writer.add_bytes("program/graph.json", b"{}")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_facts_that_no_reader_accepts_are_not_published(tmp_path: Path) -> None:
    facts = {**small_artifact.FACTS, "model": {"vocab_size": 0}}
    with pytest.raises(ArtifactRejected, match=r"manifest\.json\.model: 'max_positions' is missing"):
        small_artifact.write(tmp_path / "a.llmc", facts=facts)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = small_artifact.write(tmp_path / "a.llmc")
    with pytest.raises(BadOption, match="exists already"):
        small_artifact.write(path)
    small_artifact.write(path, replace=True, facts={**small_artifact.FACTS, "llmc_version": "2"})
    assert Artifact.open(path).manifest.llmc_version == "2"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_an_artifact_is_never_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "thesis"
    directory.mkdir()
    (directory / "chapter").write_text("years of work")
    with pytest.raises(BadOption, match="not an artifact"):
        small_artifact.write(directory, replace=True)
    (tmp_path / "file").write_text("also work")
    with pytest.raises(BadOption, match="not an artifact"):
        small_artifact.write(tmp_path / "file", replace=True)
    (tmp_path / "link").symlink_to(small_artifact.write(tmp_path / "a.llmc"))
    with pytest.raises(BadOption, match="not an artifact"):
        small_artifact.write(tmp_path / "link", replace=True)
    assert (directory / "chapter").read_text() == "years of work"


def test_a_name_taken_while_writing_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.llmc"
    with pytest.raises(BadOption, match="exists already"), ArtifactWriter(path) as writer:
        with writer.open_weights({}):
            pass
        writer.add_bytes("program/graph.json", b"{}")
        small_artifact.write(path)
        writer.publish(small_artifact.FACTS)
    assert Artifact.open(path).has("tokenizer/tokenizer.json")
    assert list(tmp_path.iterdir()) == [path]


def test_without_an_atomic_exchange_two_renames_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_artifact.write(tmp_path / "a.llmc")
    monkeypatch.setattr(artifact_writer, "_exchange", lambda first, second: False)
    small_artifact.write(path, replace=True, facts={**small_artifact.FACTS, "llmc_version": "2"})
    assert Artifact.open(path).manifest.llmc_version == "2"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildFailed, match=r"a\.llmc: cannot be written"), ArtifactWriter(tmp_path / "file" / "a.llmc"):
        pass


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.llmc"
    process = subprocess.Popen([sys.executable, "-c", WRITE_SLOWLY, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == "stopped\n"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_by_the_next_one_but_not_what_a_living_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.llmc"
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITE_SLOWLY, path], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
    assert len(list(tmp_path.iterdir())) == 2
    processes[0].kill()
    processes[0].wait()
    small_artifact.write(path)
    assert len(list(tmp_path.iterdir())) == 2
    processes[1].kill()
    processes[1].wait()
    small_artifact.write(path, replace=True)
    assert list(tmp_path.iterdir()) == [path]
    for process in processes:
        process.communicate()


def test_kill_9_at_any_moment_leaves_an_intact_artifact(tmp_path: Path) -> None:
    path = small_artifact.write(tmp_path / "a.llmc")
    moments = random.Random(7)
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, path, os.fspath(Path(__file__).parents[1])],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        time.sleep(moments.random() * 0.03)
        process.kill()
        process.communicate()
        assert Artifact.open(path).manifest.llmc_version in ("1", "2")
    small_artifact.write(path, replace=True)
    assert list(tmp_path.iterdir()) == [path]
