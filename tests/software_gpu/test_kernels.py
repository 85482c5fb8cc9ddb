"""Generated kernels as they are compiled, instruction by instruction, against what they mean."""

import pytest
from support import linear_regions
from support.compiled_kernels import run_compiled
from support.linear_regions import Case

LEVELS = ("sm_80", "sm_90")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rows", [1, 9, 70])
@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
def test_linears(monkeypatch: pytest.MonkeyPatch, format: str, rows: int, level: str) -> None:
    run_compiled(monkeypatch, level, linear_regions)
    linear_regions.check(Case(format, n=24, k=200, rows=rows, target=level))
