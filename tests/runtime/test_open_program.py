"""Native artifacts: opened without torch, run only when trusted, refused when damaged; with tiny_program.cpp."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import native_artifact, tiny_program
from support.small_artifact import reseal

from llmc.cli import main
from llmc.errors import ArtifactRejected, BadOption
from llmc.loading import load
from llmc.runtime import open_program
from llmc.runtime.artifact import Artifact
from llmc.runtime.open_program import open_cpu_session

TOKENS = [1, 2, 3, 0, 6]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return native_artifact.write(tmp_path / "tiny.llmc")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache in which the library was built is that of this process."""
    monkeypatch.setenv("LLMC_CACHE", str(tiny_program.cache()))
    return tiny_program.cache()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache in which the library was not built."""
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "empty"))
    return tmp_path / "empty"


def expected() -> np.ndarray:
    return tiny_program.expected(tiny_program.weights(), TOKENS)


def test_a_library_that_this_machine_made_runs(path: Path, here: Path) -> None:
    for verify in ("full", "fast"):
        model = load(path, verify=verify, threads=1)
        assert np.array_equal(model.session.logits(TOKENS), expected())
    assert type(model.session.program).__name__ == "CpuProgram"


def test_a_library_from_elsewhere_runs_only_when_trusted(path: Path, elsewhere: Path) -> None:
    with pytest.raises(ArtifactRejected, match=r"cpu-portable.so: native code .* --trust .*--program reference"):
        load(path)
    assert np.array_equal(load(path, trust=True, threads=1).session.logits(TOKENS), expected())


def test_an_altered_library_is_refused_even_with_every_hash_made_right(path: Path, here: Path) -> None:
    library = path / "program" / "cpu-portable.so"
    library.write_bytes(library.read_bytes() + b"\0")
    with pytest.raises(ArtifactRejected, match="expected"):
        load(path)
    reseal(path)
    with pytest.raises(ArtifactRejected, match="native code that this machine did not make"):
        load(path)


def test_a_library_made_here_refuses_weights_of_another_size(path: Path, here: Path, tmp_path: Path) -> None:
    other = Path(tmp_path / "other.llmc")
    original = tiny_program.weights
    tiny_program.weights = lambda: {name: array[:3] for name, array in original().items()}
    try:
        native_artifact.write(other)
    finally:
        tiny_program.weights = original
    with pytest.raises(ArtifactRejected, match="weight 'table' has 84 bytes, expected 196"):
        load(other)


def test_a_library_made_here_refuses_a_manifest_with_more_tokens(path: Path, here: Path) -> None:
    reseal(path, lambda manifest: manifest["model"].update(vocab_size=1000))
    with pytest.raises(ArtifactRejected, match="the manifest says 1000 tokens, its program knows 7"):
        load(path)


def test_damaged_weights_are_found_as_they_are_read(path: Path, here: Path) -> None:
    weights = path / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactRejected, match="damaged or altered"):
        load(path)
    assert load(path, verify="fast", threads=1).session.logits(TOKENS).shape == (5, 7)
    with pytest.raises(ArtifactRejected, match="damaged or altered"):
        load(path, program="reference")


def test_the_best_library_for_the_machine_is_chosen(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = native_artifact.write(tmp_path / "two.llmc", levels=("avx512", "avx2"))
    chosen = []
    monkeypatch.setattr(open_program, "_allowed", lambda artifact, name, cache, trust: chosen.append(name) or b"")
    for runnable, wanted in ((("avx512", "avx2", "portable"), "avx512"), (("avx2", "portable"), "avx2")):
        monkeypatch.setattr("llmc.runtime.cpu_features.levels", lambda runnable=runnable: runnable)
        with pytest.raises(ArtifactRejected, match="cannot be loaded"):
            load(path)
        assert chosen.pop() == f"program/cpu-{wanted}.so"
    monkeypatch.setattr("llmc.runtime.cpu_features.levels", lambda: ("portable",))
    with pytest.raises(ArtifactRejected, match="holds avx512, avx2, this machine runs portable"):
        load(path)


def test_what_is_no_verification_and_no_program_is_refused(path: Path, here: Path) -> None:
    with pytest.raises(BadOption, match="is no kind of program; use cuda or cpu or reference"):
        load(path, program="gpu")
    with pytest.raises(BadOption, match="is not a way to check"):
        open_cpu_session(Artifact.open(path), cache=here, verify="none")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ({"cpu": {"source": "program/cpu.cpp"}}, "at least one library: avx2, avx512, portable"),
        ({"cpu": {"portable": "program/cpu-portable.so"}}, "'source' is missing"),
        ({"cpu": {"source": "program/cpu.cpp", "sse9": "program/cpu-portable.so"}}, "'sse9' is unknown"),
        ({"reference": {}}, "'graph' is missing"),
    ],
)
def test_programs_have_the_files_that_they_need(path: Path, programs: dict[str, object], message: str) -> None:
    reseal(path, lambda manifest: manifest.update(programs=programs))
    with pytest.raises(ArtifactRejected, match=message):
        Artifact.open(path)


def test_an_artifact_without_a_native_program_says_so(path: Path) -> None:
    reseal(path, lambda manifest: manifest["programs"].pop("cpu"))
    with pytest.raises(ArtifactRejected, match=r"holds programs reference; expected the cpu program"):
        load(path, program="cpu")


@pytest.mark.parametrize("how", ["load", "run"])
def test_a_native_artifact_runs_without_torch(path: Path, how: str) -> None:
    blocked = ("torch", "transformers", "sympy", "safetensors", "networkx")
    code = {
        "load": f"import llmc; made = llmc.load({str(path)!r}).generate([[1, 2]], max_new_tokens=3)[0].text",
        "run": f"from llmc.cli import main; assert main(['run', {str(path)!r}, 'bc', '--max-new-tokens', '3']) == 0",
    }[how]
    script = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n{code}\n"
    environment = {**os.environ, "LLMC_CACHE": str(tiny_program.cache())}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert how == "load" or len(done.stdout.strip()) == 3


def test_the_command_line_runs_native_artifacts(
    path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(path), "bc"]) == 3
    assert "--trust" in capsys.readouterr().err
    assert main(["run", str(path), "bc", "--trust", "--threads", "1", "--max-new-tokens", "4", "--json"]) == 0
    tokens = [1, 2]
    for token in json.loads(capsys.readouterr().out)["token_ids"]:
        assert token == tiny_program.expected(tiny_program.weights(), tokens)[-1].argmax()
        tokens.append(token)
    assert len(tokens) == 6
    assert main(["run", str(path), "bc", "--trust", "--threads", "0"]) == 2
    assert main(["run", str(path), "bc", "--program", "gpu"]) == 2
