"""What the README says is so: its commands and its Python run, the files that it names exist, its tables are true."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from house.package import ROOT

from llmc.cli.app import make_app
from llmc.cli.exit_codes import MEANING

README = (ROOT / "README.md").read_text()
MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
SET_UP = ["bash examples/quickstart.sh", "bash tests/run.sh"]
"""Commands that set up the machine: continuous integration runs the second, which does all that the first does."""


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _commands() -> list[str]:
    lines = [line for block in _blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and line not in SET_UP]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with `llmc` on the way, where `tiny_model` stands at the place of the README's model."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "models").mkdir()
    (folder / MODEL).symlink_to(tiny_model)
    (folder / "bin").mkdir()
    llmc = folder / "bin" / "llmc"
    llmc.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmc "$@"\n')
    llmc.chmod(0o755)
    return folder


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{folder / 'bin'}:/usr/bin:/bin"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_first_two_commands_are_the_set_up() -> None:
    assert [line for block in _blocks("bash")[:2] for line in block.splitlines()] == SET_UP


def test_every_command_of_the_readme_runs(workplace: Path) -> None:
    """In order, in one folder, since each uses what those before it made."""
    commands = _commands()
    assert len(commands) >= 5
    for command in commands:
        done = _run(["/bin/sh", "-c", command], workplace)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout, f"{command}: says nothing"


def test_the_python_of_the_readme_runs(workplace: Path) -> None:
    blocks = _blocks("python")
    assert len(blocks) == 1
    _run(["/bin/rm", "-rf", "smollm2.llmc"], workplace)
    done = _run([sys.executable, "-c", blocks[0]], workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_commands_in_the_text_have_the_options_that_they_name() -> None:
    """Those of `llmc`, `tests/run.sh` and options by themselves: each is one of a command that there is."""
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    code = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose)]
    group = typer.main.get_group(make_app())
    commands = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()
    }
    named = [text.split()[1:] for text in code if text.startswith("llmc ")]
    assert len(named) > 10
    for command, *rest in named:
        assert command in commands, f"llmc {command}"
        assert {word for word in rest if word.startswith("-")} <= commands[command], f"llmc {command} {rest}"
    of_tests = (ROOT / "tests" / "conftest.py").read_text()  # tests/run.sh hands them to pytest
    for text in code:
        if text.startswith("--"):
            assert any(text.split()[0] in options for options in commands.values()), text
        if text.startswith("bash tests/run.sh --"):
            assert f'addoption("{text.split()[2]}"' in of_tests, text


def test_the_files_that_the_readme_names_exist() -> None:
    prose = re.sub(r"^```bash\n.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    top = {path.name for path in ROOT.iterdir()} - {"models"}
    places = {place for place in re.findall(r"[\w.*-]+/[\w./*-]*", prose) if place.split("/")[0] in top}
    assert len(places) > 10
    assert [place for place in sorted(places) if not list(ROOT.glob(place.rstrip("./")))] == []


def test_the_table_of_exit_codes_is_that_of_the_command_line() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", README, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == MEANING


def test_every_number_of_speed_names_its_machine() -> None:
    for line in README.splitlines():
        if re.search(r"\d tokens/s|times faster|\dx faster", line):
            assert re.search(r"cores|H100|H200|EPYC|Xeon", line), f"a number without a machine: {line}"
