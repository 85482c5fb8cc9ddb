"""What doctor says of the means to make and run native programs."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from support import fake_cuda

from llmc.cli.reports import examination_lines
from llmc.doctor import Gpu, examine, find_gpus


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


def test_gpus_are_reported_or_why_there_are_none() -> None:
    fake = fake_cuda.library()._name
    gpus, problem = find_gpus(fake, fake)
    assert (gpus, problem) == ((Gpu("Fake H200", 1 << 30, "9.0", "sm_90", "12.4", f"cuBLAS 12.8.4 ({fake})"),), "")
    found = dataclasses.replace(examine(), gpus=gpus, gpu_problem="")
    lines = list(examination_lines(found))
    assert "gpu       Fake H200, 1.0 GiB, sm_90, driver for CUDA 12.4" in lines
    assert f"          library for linears of many rows: cuBLAS 12.8.4 ({fake})" in lines
    gpus, problem = find_gpus("libnothing.so.1")
    found = dataclasses.replace(found, gpus=gpus, gpu_problem=problem)
    assert any(line.startswith("gpu       none: libnothing.so.1: ") for line in examination_lines(found))
