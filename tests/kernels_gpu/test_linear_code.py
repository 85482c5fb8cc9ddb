"""The machine code of linears of the shapes of real models: static checks find nothing to say against it."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.linear_cases import Case, layer
from support.linear_regions import Outline

from llmc.codegen.target import Target
from llmc.codegen.triton.compile import compile_kernels
from llmc.codegen.triton.kernel import Draft
from llmc.codegen.triton.static_checks import examine, traits_of

LAYER = layer(2048, 8192, 32, 8, 64)
"""A layer of Llama 3.2 1B."""
LARGER = layer(4096, 14336, 32, 8, 128)
"""A layer of Llama 3.1 8B."""


MODEL = LAYER | {"head": Case(n=128256, k=2048, source="rms_norm", domain="R", indirect=True)}
LIMITS = {("sm_100", "int4", 16): 3.6, ("sm_100", "int4", 32): 4.3, ("sm_100", "int6", 32): 4.6}
"""Instructions a weight that kernels may take beyond the time that there is for them, by target, format and rows.

A B200 issues 5.4 instructions for each byte that its memory delivers, an H200 7.7. To unpack levels takes 1.5 a weight,
to scale the sums of a group of 32 columns one for each 32 rows of activations, and loads, products and the loop the
rest: its matrix units multiply no integers by bfloat16, and only groups of scales that are powers of two, or of fp8, by
themselves.
"""
MENDED = {
    "columns that programs share": ("down", "int4", "sm_90", 32),
    "smaller rounds": ("o", "int4", "sm_80", 16),
    "zeros of pairs in the background": ("qkv", "int4", "sm_90", 1),
    "weights of norms in the background": ("qkv", "int6", "sm_90", 8),
    "rows that are stored as they are multiplied": ("down", "int4", "sm_100", 8),
    "registers for 64 rows": ("head", "int6", "sm_80", 64),
    "reads ahead as far as the target needs": ("down", "bf16", "sm_80", 1),
}
"""One kernel for each thing that was found to be slow."""


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


@pytest.mark.parametrize("what", MENDED)
def test_what_was_mended(what: str, cache: Path) -> None:
    name, format, level, rows = MENDED[what]
    case = replace(MODEL[name], format=format, target=level)
    assert findings(launches({name: case}, rows), level, cache, rows) == {}


@pytest.mark.sweep
@pytest.mark.parametrize("rows", [1, 8, 16, 32])
@pytest.mark.parametrize("format", ["bf16", "fp8", "int8", "int6", "int4"])
@pytest.mark.parametrize("level", ["sm_80", "sm_89", "sm_90", "sm_100"])
def test_a_layer(level: str, format: str, rows: int, cache: Path) -> None:
    cases = {name: replace(case, format=format, target=level) for name, case in LAYER.items()}
    found = findings(launches(cases, rows), level, cache, rows)
    limit = LIMITS.get((level, format, rows), 0.0)
    assert {name: said for name, said in found.items() if not _within(said, limit)} == {}


def _within(said: tuple[str, ...], limit: float) -> bool:
    """Whether there is nothing but instructions, and no more of them than a limit that is stated."""
    return all(" instructions a weight" in finding and float(finding.split()[0]) <= limit for finding in said)


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
