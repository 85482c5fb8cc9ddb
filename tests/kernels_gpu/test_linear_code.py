"""The machine code of linears of the shapes of real models: static checks find nothing to say against it."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.linear_regions import Case, Outline, layer

from llmc.codegen.target import Target
from llmc.codegen.triton.compile import compile_kernels
from llmc.codegen.triton.kernel import Draft
from llmc.codegen.triton.static_checks import examine, traits_of

LAYER = layer(2048, 8192, 32, 8, 64)
"""A layer of Llama 3.2 1B."""
LARGER = layer(4096, 14336, 32, 8, 128)
"""A layer of Llama 3.1 8B."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def findings(drafts: dict[str, Draft], level: str, cache: Path, rows: int = 1) -> dict[str, tuple[str, ...]]:
    """What static checks say of kernels in a step of so many rows."""
    binaries = compile_kernels({name: draft.kernel for name, draft in drafts.items()}, level, cache=cache)
    found = {
        name: examine(binaries[name], traits_of(draft, Target.preset(level), rows), level).findings
        for name, draft in drafts.items()
    }
    return {name: said for name, said in found.items() if said}


def launches(cases: dict[str, Case], rows: int) -> dict[str, Draft]:
    """The products of linears in a step of so many rows."""
    found = {}
    for name, case in cases.items():
        for draft in Outline(case).drafts():
            if draft.when.holds({"T": rows, "R": rows, "B": 1}) and draft.kernel.kind == "linear":
                assert name not in found and isinstance(draft, Draft)
                found[name] = draft
    return found


@pytest.mark.parametrize("case", [LAYER["down"], replace(LAYER["down"], format="int4")], ids=["bf16", "int4"])
def test_a_linear_of_one_token(case: Case, cache: Path) -> None:
    assert findings(launches({"down": case}, 1), "sm_90", cache) == {}


@pytest.mark.parametrize(("name", "rows"), [("qkv", 1), ("qkv", 8), ("o", 64)])
def test_kernels_fit_every_gpu_of_their_target(name: str, rows: int, cache: Path) -> None:
    """One of 8.6 or, by PTX, 12.0 has less shared memory than one of 8.0."""
    case = replace((LARGER if rows == 1 else LAYER)[name], format="int4", target="sm_80")
    kernels = {name: draft.kernel for name, draft in launches({name: case}, rows).items()}
    assert all(binary.shared <= 99 << 10 for binary in compile_kernels(kernels, "sm_80", cache=cache).values())


@pytest.mark.sweep
@pytest.mark.parametrize("rows", [1, 8, 16])
@pytest.mark.parametrize("format", ["bf16", "fp8", "int8", "int6", "int4"])
@pytest.mark.parametrize("level", ["sm_80", "sm_89", "sm_90", "sm_100"])
def test_a_layer(level: str, format: str, rows: int, cache: Path) -> None:
    cases = {name: replace(case, format=format, target=level) for name, case in LAYER.items()}
    assert findings(launches(cases, rows), level, cache, rows) == {}


@pytest.mark.sweep
@pytest.mark.parametrize("format", ["bf16", "int4"])
@pytest.mark.parametrize("level", ["sm_80", "sm_90", "sm_100"])
def test_a_larger_layer_of_one_token(level: str, format: str, cache: Path) -> None:
    cases = {name: replace(case, format=format, target=level) for name, case in LARGER.items()}
    assert findings(launches(cases, 1), level, cache) == {}


@pytest.mark.sweep
@pytest.mark.parametrize(
    "format", ["bf16", "f16", "f32", "fp8", "int8", "int6", "int6g16", "int4", "int4g128", "int4m"]
)
@pytest.mark.parametrize("level", ["sm_80", "sm_100", "gfx942"])
def test_all_launches_compile(level: str, format: str, cache: Path) -> None:
    case = Case(format, n=96, k=200, source="layer_norm", bias=False, chain=("add", "gelu"), target=level)
    drafts = [draft for draft in Outline(case).drafts() if isinstance(draft, Draft)]
    names = {f"k{number}": draft.kernel for number, draft in enumerate(drafts)}
    assert compile_kernels(names, level, cache=cache).keys() == names.keys()
