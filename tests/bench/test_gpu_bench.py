"""The benchmark on a GPU, as far as it goes without one: what is launched, counted and shown."""

from pathlib import Path

import pytest
from support import cuda_artifact, fake_cuda
from support.tiny_gpu_program import BLOCK, PLAN, V, weights

from llmc.bench.costs import Costs
from llmc.bench.gpu import GpuResult, run_workload
from llmc.bench.gpu_kernels import REPETITIONS, REPLAYS, KernelTime, kernel_times
from llmc.bench.gpu_probes import Boundaries
from llmc.bench.workloads import Workload
from llmc.cli import main
from llmc.runtime.artifact import Artifact
from llmc.runtime.cuda.open_session import open_cuda_session
from llmc.runtime.cuda.program import GpuProgram

PREFILL, DECODE = Workload("pp16", "prefill", 16, 0), Workload("tg4", "decode", 16, 4)


def test_each_kernel_of_a_step_is_measured_by_itself_and_the_step_as_a_whole() -> None:
    device = fake_cuda.device()
    program = GpuProgram(PLAN, device, weights())
    before = fake_cuda.counts()
    found = kernel_times(program, device, sequences=2, position=BLOCK)
    assert [(time.kernel, time.launches) for time in found] == [
        ("write_0", 1),
        ("sum_0", 1),
        ("logits_0", 1),
        ("the whole step", 3),
    ]
    assert all(time.seconds == pytest.approx(1.5e-3 / REPLAYS) for time in found), "the fake takes 1.5 ms for all"
    replays = fake_cuda.counts()["replays"] - before["replays"]
    assert replays == 1 + 4 * REPLAYS * (1 + REPETITIONS)


def test_workloads_run_as_a_caller_sees_them(tmp_path: Path) -> None:
    path = cuda_artifact.write(tmp_path / "a")
    session = open_cuda_session(
        Artifact.open(path, verify="fast"), cache=tmp_path, trust=True, library=fake_cuda.library()._name
    )
    assert session.facts.vocab_size == V
    for work in (PREFILL, DECODE):
        assert run_workload(session, work, 0) > 0
    assert session.blocks_in_use == 0


def test_what_was_measured_is_shown_beside_the_limit() -> None:
    result = GpuResult(
        model="a.llmc",
        gpu="Fake H200",
        driver="12.4",
        bandwidth=4e12,
        boundaries=Boundaries(1.3e-6, 0.6e-6),
        costs=Costs(2_000_000_000, 0, 0, "bf16", ((1000, "k <= q"),)),
        workloads=[PREFILL, DECODE],
        rates={"pp16": [5000.0], "tg4": [900.0, 1000.0, 1100.0]},
        kernels=[KernelTime("linear_0", 16, 200_000_000, 100e-6), KernelTime("rows_0", 2, 0, 4e-6)],
        products="none: cuBLAS is not wanted",
    )
    assert result.fraction(PREFILL) is None
    assert result.fraction(DECODE) == pytest.approx(1000 * (2_000_000_000 + 19 * 1000) / 4e12)
    assert list(result.lines()) == [
        "a.llmc on Fake H200, driver for CUDA 12.4",
        "reads 4000 GB/s; a kernel boundary in a graph takes 1.30 us, 0.60 us with dependent launch",
        "library for linears of many rows: none: cuBLAS is not wanted",
    ]
    speeds, kernels = result.tables()
    assert speeds.rows == [["pp16", "5000.0", "5000.0 to 5000.0", ""], ["tg4", "1000.0", "900.0 to 1100.0", "50%"]]
    assert kernels.rows == [["linear_0", "16", "100.0", "6.25", "200.0", "50%"], ["rows_0", "2", "4.0", "2.00", "", ""]]
    plain = result.to_json()
    assert (plain["schema"], len(plain["tests"]), len(plain["kernels"])) == ("llmc.bench.gpu/1", 2, 2)


def test_options_that_do_not_go_together_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(cuda_artifact.write(tmp_path / "a"))
    assert main(["bench", path, "--device", "gpu"]) == 2
    assert "'gpu' is no device; use cpu or cuda" in capsys.readouterr().err
    assert main(["bench", path, "--device", "cuda", "--against", "ort"]) == 2
    assert "leave out --against" in capsys.readouterr().err
