"""An artifact for a GPU, built where there is none: what it holds, what is said of it, and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import fake_cuda

import llmc
from llmc.cli import main
from llmc.errors import BadOption, MissingTool
from llmc.gpu import _Evaluated, on_this_machine
from llmc.ir.weights import Expr, Weight
from llmc.options import TARGETS, Options, cache_directory
from llmc.runtime.artifact import Artifact
from llmc.runtime.crossover import Crossover
from llmc.runtime.cuda.code_file import read_section
from llmc.runtime.cuda.driver import LEVELS
from llmc.runtime.cuda.open_session import read_plan
from llmc.runtime.cuda.plan_file import parse_plan
from llmc.runtime.native_trust import GPU_SUFFIX, built_here
from llmc.runtime.tuning import write_gpu_tuning
from llmc.zoo import tiny


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    compiled = llmc.compile(tiny("llama"), target="sm_90", prove=False)
    return Artifact.open(compiled.save(tmp_path_factory.mktemp("gpu") / "tiny.llmc"))


def test_it_holds_plan_code_source_and_explanation(artifact: Artifact) -> None:
    roles = artifact.manifest.programs["cuda"]
    assert set(roles) == {"sm_90", "sm_90.bin", "sm_90.py", "sm_90.explanation"}
    code, source = artifact.read(roles["sm_90.bin"]), artifact.read(roles["sm_90.py"]).decode()
    found = parse_plan(artifact.read(roles["sm_90"]), "plan", len(code))
    assert found.plan.target == "sm_90" and found.ptx is None
    images = read_section(code, found.code.section, found.code.binaries, "code")
    for kernel in found.plan.kernels:
        assert images[kernel.name].content[:4] == b"\x7fELF"
        assert f"def {kernel.name}(" in source


def test_its_code_may_run_where_it_was_made(artifact: Artifact) -> None:
    name = artifact.manifest.programs["cuda"]["sm_90.bin"]
    assert built_here(cache_directory(), artifact.manifest.files[name].sha256, GPU_SUFFIX) is not None


def test_each_region_is_explained(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(artifact.root), "linear", "--target", "sm_90"]) == 0
    shown = capsys.readouterr().out
    assert "predicted for sm_90" in shown and "not gemm:" in shown


def test_each_launch_is_shown(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(artifact.root), "--launches", "sm_90"]) == 0
    lines = capsys.readouterr().out.splitlines()
    plan = read_plan(artifact, "sm_90").plan
    assert len(lines) == 1 + len(plan.rearrangements) + len(plan.launches) + len(plan.sampling)
    (first,) = [line for line in lines if line.startswith("T 1 on") and " 0 " in line and "tokens" in line]
    assert "rows_0" in first and "T x 1 x 1" in first
    assert any(line.startswith("T 1 to 1 ") and "gemv of " in line for line in lines)
    assert any(line.startswith("decode ") and "k of layer 1" in line and "B" in line for line in lines)
    assert main(["inspect", str(artifact.root), "--launches", "sm_90", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["launches"]
    assert [row["launch"] for row in found if row["when"] == "load"] == [
        each.launch.kernel for each in plan.rearrangements
    ]
    for other in ("sm_80", "sm_90.bin"):
        assert main(["inspect", str(artifact.root), "--launches", other]) == 2
        assert f"holds no program for {other}" in " ".join(capsys.readouterr().err.split())


def test_crossovers_are_shown_with_where_they_come_from(artifact: Artifact, tmp_path: Path) -> None:
    """Those of the program; where there is such a GPU, here the fake one, those that were measured on it."""
    (tmp_path / "libcuda.so.1").symlink_to(fake_cuda.library()._name)

    def explained(*words: str) -> str:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "LLMC_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "llmc", "explain", str(artifact.root), "--target", "sm_90", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    table = json.loads(explained("--json"))["crossovers"]
    assert {crossover["source"] for crossover in table.values()} == {"predicted"}
    linear = next(iter(table))
    measured = Crossover(2, 9, "measured on a fake GPU", 100)
    write_gpu_tuning(tmp_path / "cache", fake_cuda.driver().gpus()[0].kind, {linear: measured, "1x1:f32": measured})
    shown = [line.split(maxsplit=4) for line in explained("linear").splitlines()]
    assert [linear, "2", "9", "100", "measured on a fake GPU"] in shown
    assert sum(line[-1] == "predicted" for line in shown if len(line) == 5) == len(table) - 1
    assert ["not", "gemm:", "used", "from", "9 rows on (measured on a fake GPU)"] in shown


def test_a_target_that_it_does_not_hold_is_an_error(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(artifact.root), "--target", "sm_80"]) == 2
    assert "holds no program for sm_80; it holds those for sm_90" in " ".join(capsys.readouterr().err.split())


def test_a_target_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(BadOption, match="'sm_1' is no machine to build for"):
        Options.read(target="sm_90,sm_1", environment={})


def test_it_runs_as_its_graph_where_there_is_no_gpu(artifact: Artifact, tmp_path: Path) -> None:
    expected = llmc.compile(tiny("llama"), program="reference", prove=False)
    loaded = llmc.load(artifact.root, program="reference")
    assert (loaded([[5, 6, 7]]) - expected([[5, 6, 7]])).abs().max() < 1e-4


def test_this_machines_gpu_can_be_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmc.gpu.Driver", fake_cuda.driver)
    options = on_this_machine(Options.read(target="cpu,cuda,sm_90", environment={}))
    assert options.targets == ("cpu", "sm_90")


def test_without_a_gpu_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmc.gpu.Driver", lambda: fake_cuda.driver("FAKE_DEVICES=0"))
    with pytest.raises(MissingTool, match=r"no NVIDIA GPU is visible.*name a target such as sm_90"):
        llmc.compile(tiny("llama"), target="cuda")


def test_a_weight_of_several_parts_is_packed_once_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = llmc.compile(tiny("llama"), target="sm_90", quantize="int4", prove=False)._build
    assert made is not None
    parts = {name: weight for name, weight in made.model.weights.items() if name.startswith("cat_")}
    given, packed, compute = _Evaluated(parts), [], Expr.compute

    def counted(weight: Expr, value: Callable[[Weight], torch.Tensor]) -> torch.Tensor:
        if "pack" in str(weight.target):
            packed.append(weight)
        return compute(weight, value)

    monkeypatch.setattr(Expr, "compute", counted)
    found = dict(given.items())
    assert len(found) == len(parts) == 3 * len(packed)
    assert all((given[name] == value).all() for name, value in found.items())


def test_what_to_build_for_is_what_can_be_built() -> None:
    assert [f"sm_{level}" for level in LEVELS] == [target for target in TARGETS if target.startswith("sm_")]
