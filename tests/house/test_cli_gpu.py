"""The command line beside a GPU: a driver without one stands where processes look for NVIDIA's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from house.conftest import Llmc
from support import cuda_artifact, fake_cuda

SHORT = ("-p", "8", "-n", "4", "-d", "0", "-b", "2")
"""Workloads that a context of 64 tokens has room for."""


def driver(folder: Path, *macros: str) -> str:
    """A folder for `LD_LIBRARY_PATH`."""
    folder.mkdir(exist_ok=True)
    (folder / "libcuda.so.1").symlink_to(fake_cuda.library(*macros)._name)
    return str(folder)


@pytest.fixture
def beside(llmc: Llmc, tmp_path: Path) -> Llmc:
    """`llmc` where there is a GPU for sm_90, and an empty cache."""
    fixed = {"LD_LIBRARY_PATH": driver(tmp_path / "lib"), "LLMC_CACHE": str(tmp_path / "cache"), "LLMC_PROGRAM": ""}
    return lambda *arguments, **others: llmc(*arguments, **(fixed | others))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return cuda_artifact.write(tmp_path / "a")


def test_a_run_uses_the_gpu_that_is_there_and_says_so(beside: Llmc, artifact: Path) -> None:
    done = beside("run", artifact, "abc", "--trust", "--max-new-tokens", 5)
    assert (done.returncode, done.stdout) == (0, "baaaa\n"), done.stderr
    assert done.stderr.rstrip().endswith("by cuda")
    told = json.loads(beside("run", artifact, "abc", "--trust", "--max-new-tokens", 5, "--json").stdout)
    assert (told["text"], told["program"], told["passed_over"]) == ("baaaa", "cuda", "")


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (["run", "{a}", "x"], {}, 3, "GPU code that this machine did not make is not run unasked"),
        (["run", "{a}", "x", "--program", "cpu"], {}, 3, "holds programs cuda for sm_90; reference; expected the cpu"),
        (["run", "{a}", "", "--trust"], {}, 2, "prompt 0: no tokens"),
        (["run", "{a}", "abc" * 22, "--trust"], {}, 2, "66 tokens leave no room in a context of 64"),
        (["run", "{a}", "x", "--trust"], {"LLMC_CACHE": "{a}/manifest.json"}, 2, "is a file; name a directory"),
        (["run", "{b}", "x", "--trust", "--program", "cuda"], {}, 3, "this machine has Fake H200 (sm_90); build the"),
        (["run", "{a}", "x", "--trust", "--program", "cuda"], {"LD_LIBRARY_PATH": "/nowhere"}, 4, "libcuda.so.1"),
        (["run", "{a}", "x", "--trust", "--program", "cuda"], {"LD_LIBRARY_PATH": "{old}"}, 4, "for CUDA 11.8"),
        (["run", "{a}", "x", "--trust", "--program", "cuda"], {"LD_LIBRARY_PATH": "{none}"}, 4, "no NVIDIA GPU is"),
        (["run", "{a}", "x", "--trust"], {"LD_LIBRARY_PATH": "{small}"}, 4, "bytes of memory on the GPU, 100 are free"),
        (["explain", "{a}", "--target", "sm_80"], {}, 2, "no program for sm_80; it holds those for sm_90"),
        (["explain", "{a}", "--target", "sm_90"], {}, 2, "says nothing of its program for sm_90"),
        (["tune", "{a}", "--device", "cuda"], {}, 3, "not run unasked"),
        (["tune", "{a}", "--device", "cuda", "--threads", "2"], {}, 2, "a GPU's program has none to choose"),
        (["tune", "{a}", "--device", "cuda", "--trust"], {"LLMC_CACHE": "{a}/manifest.json/x"}, 2, "set LLMC_CACHE to"),
        (["tune", "{a}", "--device", "gpu"], {}, 2, "'gpu' is no device; use cpu or cuda"),
        (["bench", "{a}", "--device", "cuda", *SHORT], {"LD_LIBRARY_PATH": "{none}"}, 4, "no NVIDIA GPU is visible"),
        (["bench", "{a}", "--device", "cuda", "--against", "ort"], {}, 2, "peers and accuracy are measured on the CPU"),
        (["verify", "{a}", "--program", "gpu"], {}, 2, "'gpu' is no kind of program"),
        (["build", "{a}", "-o", "{a}2", "--target", "sm_91"], {}, 2, "'sm_91' is no machine to build for"),
        (["build", "{a}", "-o", "{a}2", "--target", ""], {}, 2, "'' is no machine to build for"),
        (["build", "{a}", "-o", "{a}2", "--target", "cuda"], {"LD_LIBRARY_PATH": "{none}"}, 4, "no NVIDIA GPU is"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_with_the_way_out(
    beside: Llmc, artifact: Path, tmp_path: Path, arguments: list[str], environment: dict[str, str], code: int,
    message: str,
) -> None:  # fmt: skip
    places = {"{a}": str(artifact)}
    if "{b}" in arguments:
        places["{b}"] = str(cuda_artifact.write(tmp_path / "b", targets=("sm_100",)))
    for name, macro in {"old": "FAKE_VERSION=11080", "none": "FAKE_DEVICES=0", "small": "FAKE_BYTES=100"}.items():
        if f"{{{name}}}" in environment.values():
            places[f"{{{name}}}"] = driver(tmp_path / name, macro)

    def filled(text: str) -> str:
        for hole, place in places.items():
            text = text.replace(hole, place)
        return text

    done = beside(*map(filled, arguments), **{name: filled(value) for name, value in environment.items()})
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not Path(f"{artifact}2").exists()


@pytest.mark.parametrize(
    ("macro", "why"),
    [
        (
            "FAKE_DEVICES=1",
            "not on Fake H200 (sm_90): the artifact holds programs cuda for sm_100; reference; build it",
        ),
        ("FAKE_DEVICES=0", "not on a GPU: no NVIDIA GPU is visible"),
        ("FAKE_VERSION=11080", "not on a GPU: libcuda.so.1: the driver is for CUDA 11.8; install"),
    ],
)
def test_a_gpu_is_not_passed_over_in_silence(tmp_path: Path, macro: str, why: str) -> None:
    other = cuda_artifact.write(tmp_path / "b", targets=("sm_100",))
    code = f"""
from llmc.loading import _default
from llmc.runtime.artifact import Artifact
print(*_default(Artifact.open({str(other)!r}, verify="fast").manifest))
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": driver(tmp_path / "lib", macro)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"reference {why}")


def test_inspect_and_doctor_show_what_there_is(beside: Llmc, artifact: Path) -> None:
    assert "program   cuda for sm_90\n" in beside("inspect", artifact).stdout
    assert "gpu       Fake H200, 1.0 GiB, sm_90, driver for CUDA 12.4\n" in beside("doctor").stdout
