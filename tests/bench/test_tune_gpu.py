"""Tuning of GPU programs without a GPU: by a clock that is made up, on kernels that the interpreter runs."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from support import cuda_artifact, fake_cuda, tiny_variants
from support.interpreted_device import InterpretedDevice
from support.tiny_gpu_program import BLOCK, CONTEXT, batch, expected, weights
from support.tiny_variants import CROSSOVER, LINEAR, NAMES, VARIANTS

from llmc.bench.tune_gpu import Tuned, measure
from llmc.cli import main
from llmc.errors import BadOption
from llmc.runtime.artifact import Artifact
from llmc.runtime.crossover import NEVER, Crossover
from llmc.runtime.cuda.cuda_device import Image
from llmc.runtime.cuda.device import Grid, Place
from llmc.runtime.cuda.open_session import open_cuda_session, read_choices
from llmc.runtime.cuda.plan import Kernel
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session
from llmc.runtime.tuning import read_gpu_tuning, write_gpu_tuning

ROWS = (1, 2, 3, 4, 8, 9, 17, 64, 65)
SOURCE = "measured by a made-up clock"
Seconds = Callable[[str, int], float]
"""What a kernel takes for so many rows."""


class Clocked(InterpretedDevice):
    """A device whose clock says what it is told to, and that knows which weights were read; unless it `computes`, that
    is all that happens.
    """

    def __init__(self, seconds: Seconds, computes: bool) -> None:
        super().__init__(tiny_variants.TEXT)
        self._computes = computes
        self._seconds = seconds
        self.clock = 0.0
        self.ticks: Counter[str] = Counter()
        self.read: list[tuple[str, int, int]] = []

    def launch(self, kernel: Kernel, grid: Grid, arguments: list[Place | int], pdl: bool) -> None:
        if self._computes:
            super().launch(kernel, grid, arguments, pdl)

        def tick() -> None:
            self.clock += self._seconds(kernel.name, grid[0])
            self.ticks[kernel.name] += 1
            if kernel.name.startswith("logits"):
                table = arguments[2]
                assert isinstance(table, Place)
                self.read.append((kernel.name, id(table.memory), table.offset))

        self._do(tick)

    def measure(self, work: Callable[[], None]) -> float:
        begin = self.clock
        work()
        return self.clock - begin


def program(
    seconds: Seconds = lambda kernel, rows: 1e-6,
    table: Mapping[str, Crossover] | None = None,
    *,
    computes: bool = False,
) -> GpuProgram:
    return GpuProgram(VARIANTS, Clocked(seconds, computes), weights(), table)


def tuned(made: GpuProgram, repetitions: int = 1, rotated: int = 1, rows: tuple[int, ...] = ROWS) -> Tuned:
    device = made.device
    assert isinstance(device, Clocked)
    return measure(made, device, context=CONTEXT, repetitions=repetitions, source=SOURCE, rows=rows, rotated=rotated)


def made_up(flat: int, gemm: int) -> Seconds:
    """A clock by which these are the crossovers."""
    variant = {name: variant for (variant, _), name in NAMES.items()}

    def seconds(kernel: str, rows: int) -> float:
        faster = {"gemv": 1, "flat": flat, "gemm": gemm}
        order = [name for name, start in faster.items() if start <= rows]
        if kernel not in variant:
            return 1e-6
        return 1.0 if variant[kernel] not in order else 1e-3 / (1 + order.index(variant[kernel]))

    return seconds


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ((2, 9), (2, 9)),
        ((1, 64), (1, 64)),
        ((3, 3), (3, 3)),
        ((1, 2), (1, 2)),
        ((4, 65), (4, 65)),
        ((9, 1000), (4, 65)),  # the lanes end at three rows, the tiles at 64
    ],
)
def test_the_clock_chooses_the_variants(wanted: tuple[int, int], found: tuple[int, int]) -> None:
    made = program(made_up(*wanted))
    result = tuned(made)
    assert result.crossovers == {LINEAR: Crossover(*found, SOURCE)}
    assert made.plan.crossovers == result.crossovers
    assert set(result.timings[LINEAR]) == set(ROWS)
    assert set(result.timings[LINEAR][1]) == {"gemv", "flat"} and set(result.timings[LINEAR][65]) == {"gemm"}


def test_variants_that_take_as_long_stay_with_the_first() -> None:
    assert tuned(program()).crossovers == {LINEAR: Crossover(4, 65, SOURCE)}


def test_copies_of_the_weights_take_turns_and_the_program_keeps_its_own() -> None:
    made = program()
    own = dict(made.weights)
    table_bytes = 2 * 256  # the table and its scale, each on a boundary of its own
    tuned(made, repetitions=2, rotated=3 * table_bytes, rows=(1,))  # for which a whole step takes the lanes
    assert made.weights == own
    device = made.device
    assert isinstance(device, Clocked)
    reads = [place for name, *place in device.read if name == "logits_1"]
    assert len(set(map(tuple, reads))) == 3
    assert reads == reads[:3] * (len(reads) // 3), "each replay reads one after another"


def test_launches_that_read_indices_of_the_step_are_measured_in_whole_steps() -> None:
    """Between steps other values may lie where the indices were."""
    kernels = [
        dataclasses.replace(kernel, parameters=tuple((name, "*i64" if name == "sums" else type) for name, type in
                                                     kernel.parameters)) if "logits" in kernel.name else kernel
        for kernel in VARIANTS.kernels
    ]  # fmt: skip
    whole, alone = Clocked(made_up(2, 9), computes=False), Clocked(made_up(2, 9), computes=False)
    for device, plan in ((whole, dataclasses.replace(VARIANTS, kernels=tuple(kernels))), (alone, VARIANTS)):
        assert tuned(GpuProgram(plan, device, weights())).crossovers == {LINEAR: Crossover(2, 9, SOURCE)}
    assert whole.ticks["sum_0"] == len(whole.read), "each reading of the table is one of a step"
    assert alone.ticks["sum_0"] == len(ROWS)


@pytest.mark.parametrize(
    ("table", "kernels"),
    [
        ({}, ["logits_1", "logits_0"]),
        ({LINEAR: Crossover(1, 2)}, ["logits_3", "logits_1"]),
        ({LINEAR: Crossover(1, 1000), "1x1:f32": Crossover(1, 1)}, ["logits_1", "logits_1"]),
        ({LINEAR: Crossover(4, 4)}, ["logits_3", "logits_0"]),
    ],
)
def test_a_tuned_program_computes_the_same(table: dict[str, Crossover], kernels: list[str]) -> None:
    tokens = [1, 4, 2, 6, 0]
    made = program(table=table, computes=True)
    device = made.device
    assert isinstance(device, InterpretedDevice)
    made.allocate(4, BLOCK)
    found = made.step(batch((tokens, 0, [2]))).copy(), made.step(batch(([3], 5, [2]))).copy()
    assert [name for name in device.launches if name.startswith("logits")] == list(dict.fromkeys(kernels))
    np.testing.assert_array_equal(np.concatenate(found), expected([*tokens, 3]))
    assert tuned(made, rows=(1, 2, 9)).crossovers == {LINEAR: Crossover(4, 65, SOURCE)}
    made.allocate(4, BLOCK)
    found = made.step(batch((tokens, 0, [2]))).copy(), made.step(batch(([3], 5, [2]))).copy()
    np.testing.assert_array_equal(np.concatenate(found), expected([*tokens, 3]))


def artifact(path: Path) -> Path:
    """With the variants, each of which is the fake driver's one kernel."""
    names = [kernel.name for kernel in VARIANTS.kernels]
    code = {name: Image(b"fake", "logits_0" if "logits" in name else name, 0, 32) for name in names}
    return cuda_artifact.write(path / "a", plan=VARIANTS, code=code)


def opened(path: Path, cache: Path, *, tuned: bool = True) -> Session:
    return open_cuda_session(
        Artifact.open(path, verify="fast"), cache=cache, trust=True, tuned=tuned, library=fake_cuda.library()._name
    )


def crossovers_of(session: Session) -> dict[str, Crossover]:
    assert isinstance(session.program, GpuProgram)
    return dict(session.program.plan.crossovers)


def test_a_session_uses_what_was_measured_on_its_gpu(tmp_path: Path) -> None:
    path, params = artifact(tmp_path), SamplingParams(max_new_tokens=20)
    first = opened(path, tmp_path)
    expected_tokens = first.generate(["abc"], params)[0].token_ids
    kind = fake_cuda.driver().gpus()[0].kind
    measured = {LINEAR: Crossover(1, 2, SOURCE)}
    write_gpu_tuning(tmp_path, kind, measured)
    write_gpu_tuning(tmp_path, "another GPU", {LINEAR: Crossover(2, 2, SOURCE)})
    session = opened(path, tmp_path)
    assert crossovers_of(session) == measured
    assert crossovers_of(opened(path, tmp_path, tuned=False)) == crossovers_of(first) == {LINEAR: CROSSOVER}
    assert session.generate(["abc"], params)[0].token_ids == expected_tokens
    held = Artifact.open(path, verify="fast")
    library = fake_cuda.library()._name
    assert read_choices(held, "sm_90", tmp_path, library) == (measured, {})
    assert read_choices(held, "sm_90", tmp_path, "libnothing.so.1") == ({LINEAR: CROSSOVER}, {})
    write_gpu_tuning(tmp_path, kind, {LINEAR: Crossover(9, 2, SOURCE)})
    with pytest.raises(BadOption, match=r"tuning.json: .*expected crossovers in order.*run `llmc tune` again"):
        opened(path, tmp_path)


def test_the_command_keeps_what_it_measures(tmp_path: Path) -> None:
    """On the fake driver, by whose clock everything takes as long."""
    path = artifact(tmp_path)
    (tmp_path / "libcuda.so.1").symlink_to(fake_cuda.library()._name)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "LLMC_CACHE": str(tmp_path / "cache")}

    def llmc(*words: str) -> str:
        command = [sys.executable, "-m", "llmc", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    found = json.loads(llmc("tune", str(path), "--device", "cuda", "--trust", "--json", "-r", "1"))
    assert found["written"] is True
    crossover = found["crossovers"][LINEAR]
    assert (crossover["flat"], crossover["gemm"], crossover["library"]) == (4, 65, NEVER)
    assert crossover["source"].startswith("measured on Fake H200, 20")
    assert found["seconds"][LINEAR]["2"].keys() == {"gemv", "flat", "gemm"}
    kind = fake_cuda.driver().gpus()[0].kind
    assert read_gpu_tuning(tmp_path / "cache", kind) == {LINEAR: Crossover(**crossover)}
    shown = llmc("tune", str(path), "--trust", "--dry-run", "-q")
    assert shown.split() == ["linear", "flat", "from", "gemm", "from", "library", "from", LINEAR, "4", "65", "never"]


def test_what_cannot_be_tuned_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(artifact(tmp_path))
    assert main(["tune", path, "--device", "gpu"]) == 2
    assert "'gpu' is no device; use cpu or cuda" in capsys.readouterr().err
    assert main(["tune", path, "--device", "cuda", "--threads", "2"]) == 2
    assert "leave out --threads" in capsys.readouterr().err
    assert main(["tune", path, "--device", "cpu"]) == 3
    assert "expected the cpu program" in " ".join(capsys.readouterr().err.split())
    other = str(cuda_artifact.write(tmp_path / "other", targets=("sm_10",)))  # no GPU that is about has this level
    assert main(["tune", other, "--device", "cuda"]) in (3, 4)
    assert "holds programs cuda for sm_10; reference" in " ".join(capsys.readouterr().err.split())
