"""Generated kernels as they are compiled, instruction by instruction, against what they mean."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support import attention_regions, linear_regions, row_regions
from support.attention_regions import Sequences
from support.compiled_kernels import run_compiled
from support.linear_regions import Case
from support.row_regions import Rows, close

F32, F16 = torch.float32, torch.float16
LEVELS = ("sm_80", "sm_90")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rows", [1, 9, 70])
@pytest.mark.parametrize("format", ["f32", "f16", "bf16", "int8", "int4", "int6g16"])
def test_linears(monkeypatch: pytest.MonkeyPatch, format: str, rows: int, level: str) -> None:
    """Ordinary lanes, matrix units of a warp, and those of a group of warps where the target has them."""
    run_compiled(monkeypatch, level, linear_regions)
    linear_regions.check(Case(format, n=24, k=200, rows=rows, target=level))


@pytest.mark.parametrize("rows", [1, 70])
def test_linears_of_fp8(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    run_compiled(monkeypatch, "sm_90", linear_regions)
    linear_regions.check(Case("fp8", n=24, k=200, rows=rows))


@pytest.mark.parametrize("rows", [1, 12])
def test_linears_with_all_that_is_around_them(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """gelu parts the threads of warps before they multiply matrices."""
    run_compiled(monkeypatch, "sm_80", linear_regions)
    linear_regions.check(Case("bf16", n=24, k=300, rows=rows, source="gelu", chain=("add", "relu"), target="sm_80"))
    heads = (("q", 4), ("k", 2), ("v", 2))
    linear_regions.check(
        Case(heads=heads, n=8 * 32, head_size=32, rotated=32, source="rms_norm", rows=rows, gemm=10, target="sm_80")
    )


@pytest.mark.parametrize("width", [7, 1300])
def test_rows(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    run_compiled(monkeypatch, "sm_80", row_regions)
    rows = Rows()
    x = rows.tensor([width])
    known = {"exp": torch.exp, "sin": torch.sin, "tanh": torch.tanh, "erf": torch.erf, "floor": torch.floor}
    for name in known:
        rows.op(name, [x], rows.new([None, width]))
    rows.run()
    for op in rows.ops:
        close(rows, op.outputs[0], known[op.op](rows.read(op.inputs[0])))


ATTENTION = {
    "bf16": attention_regions.Case(heads=6, key_heads=2),
    "f16": attention_regions.Case(heads=6, key_heads=2, key_size=32, value_size=32, dtype=F16),
    "f32, window": attention_regions.Case(mask="(k <= q) & (q - k < 40)", dtype=F32),
    "int8": attention_regions.Case(heads=6, key_size=20, value_size=24, dtype=torch.int8, scale=0.2),
    "sinks": attention_regions.Case(sinks=torch.tensor([0.5, -1.0, 3.0, 0.0], dtype=torch.bfloat16), dtype=F32),
}


def attend(sequences: Sequences, *steps: Sequence[int]) -> None:
    """Each step takes so many tokens of each sequence."""
    for counts in steps:
        found, wanted = sequences.step(counts)
        greatest = max(1.0, float(np.abs(wanted).max()))
        assert np.abs(found - wanted).max() <= sequences.case.tolerance * greatest, counts


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(monkeypatch: pytest.MonkeyPatch, name: str, level: str) -> None:
    run_compiled(monkeypatch, level, attention_regions)
    attend(Sequences(ATTENTION[name], [71, 3]), [68, 1], [1, 1])


def test_threads_that_hold_the_same_sum_agree_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys divided over programs: what each of them found is added up by several warps alike."""
    run_compiled(monkeypatch, "sm_80", attention_regions)
    attend(Sequences(attention_regions.Case(dtype=F32, heads=6, cores=8), [300]), [299], [1])
