"""What doctor says of the means to make and run native programs."""

import shutil
from pathlib import Path

import pytest

from llmc.cli.reports import examination_lines
from llmc.doctor import examine


def test_the_levels_of_instructions_and_the_compiler_are_reported() -> None:
    found = examine()
    assert found.processor.levels[-1] == "portable"
    lines = list(examination_lines(found))
    assert f"levels    {' '.join(found.processor.levels)}" in lines
    if shutil.which("g++"):
        assert f"compiler  {shutil.which('g++')}: {found.compiler.version}" in lines


def test_without_a_compiler_the_report_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMC_CXX", str(tmp_path / "nothing"))
    found = examine()
    assert found.compiler.path == ""
    (line,) = (line for line in examination_lines(found) if line.startswith("compiler"))
    assert line.startswith(f"compiler  compiler: {tmp_path / 'nothing'} is not a C++ compiler that runs")
