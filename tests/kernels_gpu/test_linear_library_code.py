"""The machine code of the kernels around a library's product: what they pass through memory goes 16 bytes at a time."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from kernels_gpu.test_linear_code import LAYER
from support.linear_regions import Outline

from llmc.codegen.target import Target
from llmc.codegen.triton.compile import compile_kernels
from llmc.codegen.triton.kernel import Draft
from llmc.codegen.triton.static_checks import examine, traits_of

ROWS = 512
MOVES = re.compile(r"\b(LDG|STG)\.E(\.[A-Z0-9.]+)?")
CASES = [("sm_90", "int4"), ("sm_90", "bf16")]
MORE = [(level, format) for level in ("sm_80", "sm_100") for format in ("int8", "int6", "int4m", "int4g128", "fp8")]


def around(level: str, format: str) -> dict[str, Draft]:
    """The kernels around the products of a layer of many rows, by name."""
    found = {}
    for name, case in LAYER.items():
        given = replace(case, format=format, target=level, rows=ROWS, gemm=65, library=65)
        for draft in Outline(given).drafts():
            if isinstance(draft, Draft) and draft.when.holds({"T": ROWS, "R": 1, "B": 1}):
                found[f"{draft.kernel.kind}_{name.replace(' ', '_')}"] = draft
    return found


def widths(code: bytes, folder: Path) -> dict[str, list[bool]]:
    """Whether loads from memory and stores to it are of 16 bytes each."""
    triton = pytest.importorskip("triton")
    path = folder / "kernel.cubin"
    path.write_bytes(code)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    text = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[bool]] = {"LDG": [], "STG": []}
    for name, form in MOVES.findall(text):
        found[name].append(".128" in form)
    return found


@pytest.mark.parametrize(
    ("level", "format"), [*CASES, *(pytest.param(*case, marks=pytest.mark.sweep) for case in MORE)]
)  # fmt: skip
def test_kernels_around_a_product(level: str, format: str, tmp_path: Path) -> None:
    drafts = around(level, format)
    kinds = {name.partition("_")[0] for name in drafts}
    assert kinds == {"rows", "finish"} | ({"unpack"} if format != "bf16" else set())
    binaries = compile_kernels({name: draft.kernel for name, draft in drafts.items()}, level, cache=tmp_path)
    for name, draft in drafts.items():
        assert examine(binaries[name], traits_of(draft, Target.preset(level), ROWS), level).findings == (), name
        if not name.startswith("rows"):
            found = widths(binaries[name].code, tmp_path)
            assert all(found["STG"]) and sum(found["LDG"]) >= 1, name
            assert name.startswith("unpack") or sum(found["LDG"]) / len(found["LDG"]) > 0.8, (name, found)
