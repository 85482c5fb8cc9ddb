"""The machine code of linears of the shapes of real models: static checks find nothing to say against it."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.linear_regions import Case, Outline

from llmc.codegen.triton.compile import compile_kernels
from llmc.codegen.triton.kernel import Draft
from llmc.codegen.triton.static_checks import Traits, examine

LAYER = {
    "qkv": Case(
        n=3072, k=2048, source="rms_norm", heads=(("q", 32), ("k", 8), ("v", 8)), head_size=64, rotated=64
    ),
    "o": Case(n=2048, k=2048, chain=("add",)),
    "gate and up": Case(n=16384, k=2048, source="rms_norm", gate="silu"),
    "down": Case(n=2048, k=8192, chain=("add",)),
}  # fmt: skip
"""A layer of Llama 3.2 1B."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def findings(drafts: dict[str, Draft], level: str, cache: Path) -> dict[str, tuple[str, ...]]:
    """What static checks say of kernels; those that wait may read weights before."""
    binaries = compile_kernels({name: draft.kernel for name, draft in drafts.items()}, level, cache=cache)
    found = {}
    for name, draft in drafts.items():
        text = draft.kernel
        constants = frozenset(
            place
            for place, ref in enumerate(text.refs)
            if ref.argument is not None and ref.argument.kind == "weight"
        )  # fmt: skip
        traits = Traits(text.weight_bits, text.matrix_units, text.most_barriers, constants, text.pdl)
        found[name] = examine(binaries[name], traits, level).findings
    return {name: said for name, said in found.items() if said}


def one_token(case: Case) -> Draft:
    """The launch of a linear in a step of one token."""
    (draft,) = [draft for draft in Outline(case).drafts() if draft.when.holds({"T": 1, "R": 1, "B": 1})]
    return draft


@pytest.mark.parametrize("case", [LAYER["down"], replace(LAYER["down"], format="int4")], ids=["bf16", "int4"])
def test_a_linear_of_one_token(case: Case, cache: Path) -> None:
    assert findings({"down": one_token(case)}, "sm_90", cache) == {}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["bf16", "int8", "int4", "fp8"])
@pytest.mark.parametrize("level", ["sm_80", "sm_89", "sm_90", "sm_100"])
def test_a_layer_of_one_token(level: str, format: str, cache: Path) -> None:
    drafts = {name: one_token(replace(case, format=format, target=level)) for name, case in LAYER.items()}
    found = findings(drafts, level, cache)
    narrow = [said for said in found.pop("qkv", ()) if "loads of 16 bytes" not in said]
    assert found == {} and narrow == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "format", ["bf16", "f16", "f32", "fp8", "int8", "int6", "int6g16", "int4", "int4g128", "int4m"]
)
@pytest.mark.parametrize("level", ["sm_80", "sm_100", "gfx942"])
def test_all_launches_compile(level: str, format: str, cache: Path) -> None:
    case = Case(format, n=96, k=200, source="layer_norm", bias=False, chain=("add", "gelu"), target=level)
    drafts = [draft for draft in Outline(case).drafts() if isinstance(draft, Draft)]
    names = {f"k{number}": draft.kernel for number, draft in enumerate(drafts)}
    assert compile_kernels(names, level, cache=cache).keys() == names.keys()
