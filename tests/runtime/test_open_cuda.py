"""Opening GPU programs: which code a GPU gets, what may run, and what is said where none fits."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support import cuda_artifact, fake_cuda
from support.tiny_gpu_program import PLAN, expected

import llmc
from llmc.errors import ArtifactRejected, MissingTool
from llmc.runtime.artifact import Artifact
from llmc.runtime.cuda.driver import LEVELS, Gpu
from llmc.runtime.cuda.open_session import candidates, cublas_for, open_cuda_session, runs_here
from llmc.runtime.cuda.plan import ALWAYS, Argument, Product
from llmc.runtime.native_trust import keep
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session


def open_it(path: Path, **options: Any) -> Session:
    library = fake_cuda.library()._name
    given = {"cache": path.parent / "cache", "trust": True, "library": library} | options
    return open_cuda_session(Artifact.open(path, verify="fast"), **given)


def test_an_artifact_generates_on_the_gpu(tmp_path: Path) -> None:
    session = open_it(cuda_artifact.write(tmp_path / "a"))
    (result,) = session.generate(["abc"], SamplingParams(max_new_tokens=20))
    tokens = [0, 1, 2]
    for token in result.token_ids:
        assert token == expected(tokens)[-1].argmax()
        tokens.append(token)
    assert result.text == "".join("abcdefg"[token] for token in result.token_ids)


@pytest.mark.parametrize(
    ("capability", "targets"),
    [
        ((9, 0), ["sm_90", "sm_80.ptx"]),
        ((8, 6), ["sm_80", "sm_80.ptx"]),
        ((8, 9), ["sm_89", "sm_80", "sm_80.ptx"]),
        ((10, 0), ["sm_100", "sm_80.ptx"]),
        ((10, 3), ["sm_80.ptx"]),
        ((12, 0), ["sm_80.ptx"]),
        ((7, 5), []),
    ],
)
def test_code_is_chosen_by_capability(capability: tuple[int, int], targets: list[str]) -> None:
    held = ["sm_80", "sm_80.bin", "sm_80.py", "sm_89", "sm_90", "sm_100", "gfx942"]
    found = candidates(dict.fromkeys(held, ""), Gpu(0, "", capability, 0, 0, 0))
    assert [target if compiled else f"{target}.ptx" for target, compiled in found] == targets


def test_a_library_is_looked_for_where_a_program_has_products() -> None:
    driver, fake = fake_cuda.driver(), fake_cuda.library()._name
    assert cublas_for(PLAN, driver, fake).says == "none: the program has no products for cuBLAS"
    arena = Argument("arena")
    product = Product(arena, arena, arena, "f32", 8, 8, 8, "T", ALWAYS, 0)
    with_products = dataclasses.replace(PLAN, launches=(*PLAN.launches, product))
    assert cublas_for(with_products, driver, fake).says == f"cuBLAS 12.8.4 ({fake})"
    with pytest.raises(MissingTool, match=r"libnothing\.so"):
        cublas_for(with_products, driver, "libnothing.so")


@pytest.mark.parametrize(
    ("capability", "target"),
    [((9, 0), "sm_90"), ((8, 6), "sm_80"), ((8, 9), "sm_89"), ((10, 3), "sm_80"), ((12, 0), "sm_80"), ((7, 5), "cpu")],
)
def test_what_to_build_for_a_gpu(capability: tuple[int, int], target: str) -> None:
    gpu = Gpu(0, "", capability, 0, 0, 0)
    assert gpu.target == target
    assert target == "cpu" or next(candidates([f"sm_{level}" for level in LEVELS], gpu))[0] == target


def test_ptx_serves_gpus_that_there_is_no_code_for(tmp_path: Path) -> None:
    session = open_it(cuda_artifact.write(tmp_path / "a", targets=("sm_80",), ptx=("sm_80",)))
    assert len(session.generate([[1]], SamplingParams(max_new_tokens=2))[0].token_ids) == 2


def test_what_the_artifact_holds_is_said_where_nothing_fits(tmp_path: Path) -> None:
    path = cuda_artifact.write(tmp_path / "a", targets=("sm_80", "sm_100"))
    with pytest.raises(ArtifactRejected) as caught:
        open_it(path)
    assert "holds programs cuda for sm_100, sm_80; reference, this machine has Fake H200 (sm_90)" in str(caught.value)
    assert "build the artifact with --target sm_90" in str(caught.value)


def test_without_a_gpu_the_error_says_what_there_is_instead(tmp_path: Path) -> None:
    path = cuda_artifact.write(tmp_path / "a")
    with pytest.raises(MissingTool, match=r"libnothing.*holds programs cuda for sm_90; reference"):
        open_it(path, library="libnothing.so.1")


def test_foreign_code_needs_trust(tmp_path: Path) -> None:
    path = cuda_artifact.write(tmp_path / "a")
    with pytest.raises(ArtifactRejected, match=r"cuda-sm_90.bin: GPU code that this machine did not make .*--trust"):
        open_it(path, trust=False)
    keep(tmp_path / "cache", cuda_artifact.CODE)
    open_it(path, trust=False)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("a plan for sm_80, expected sm_90", {"target": "sm_80"}),
        ("the manifest says 7 tokens, its program knows 8", {"vocabulary": 8}),
        ("has other caches than the manifest", {"caches": [[2, 1, 1, "float32"]]}),
        ("'table' has 224 bytes, expected 225", {"weights": {"table": 225, "scale": 28}}),
    ],
)  # fmt: skip
def test_plans_that_do_not_fit_the_artifact_are_refused(tmp_path: Path, message: str, change: dict[str, Any]) -> None:
    path = cuda_artifact.write(tmp_path / "a", alter=lambda plain: plain.update(change))
    with pytest.raises(ArtifactRejected, match=message):
        open_it(path)


def test_damaged_weights_are_found_while_they_are_uploaded(tmp_path: Path) -> None:
    path = cuda_artifact.write(tmp_path / "a")
    weights = path / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactRejected, match="damaged or altered"):
        open_it(path)
    open_it(path, verify="fast")


def test_a_gpu_program_is_the_default_where_it_runs(tmp_path: Path) -> None:
    library = fake_cuda.library()._name
    fits = Artifact.open(cuda_artifact.write(tmp_path / "a"), verify="fast").manifest
    other = Artifact.open(cuda_artifact.write(tmp_path / "b", targets=("sm_100",)), verify="fast").manifest
    assert runs_here(fits, library)
    assert not runs_here(other, library)
    assert not runs_here(fits, "libnothing.so.1")


def test_load_takes_the_kind_of_program(tmp_path: Path) -> None:
    path = cuda_artifact.write(tmp_path / "a", targets=("sm_10",))  # no GPU that is about has this level
    with pytest.raises((MissingTool, ArtifactRejected), match=r"holds programs cuda for sm_10; reference"):
        llmc.load(path, program="cuda", trust=True)
