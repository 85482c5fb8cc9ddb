"""Generated kernels as they are compiled, instruction by instruction, against what they mean."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import attention_regions, linear_regions, row_regions
from support.attention_regions import Sequences
from support.compiled_kernels import run_compiled
from support.linear_cases import Case
from support.row_regions import Rows, close
from support.software_machine import KernelFailed

F32, F16 = torch.float32, torch.float16
LEVELS = ("sm_80", "sm_90")


@pytest.mark.parametrize(
    ("format", "rows", "level"),
    [
        *((format, rows, level) for format in ("f32", "bf16", "int4") for rows in (1, 9, 70) for level in LEVELS),
        *((format, 9, "sm_80") for format in ("f16", "int8", "int6g16")),
        *((format, 20, "sm_90") for format in ("int4", "int6")),
    ],
)
def test_linears(monkeypatch: pytest.MonkeyPatch, format: str, rows: int, level: str) -> None:
    """Ordinary lanes, matrix units of a warp, and those of a group of warps where the target has them."""
    run_compiled(monkeypatch, level, linear_regions)
    linear_regions.check(Case(format, n=24, k=200, rows=rows, target=level))


@pytest.mark.parametrize(("rows", "level"), [(20, "sm_80"), (40, "sm_90")])
def test_columns_that_programs_share(monkeypatch: pytest.MonkeyPatch, rows: int, level: str) -> None:
    run_compiled(monkeypatch, level, linear_regions)
    launched = linear_regions.check(Case("int4", n=40, k=4096, rows=rows, chain=("add",), target=level))
    assert "columns shared by" in launched[-1]


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
    "slopes": attention_regions.Case(bias="t0[h] * (k - q)", tables=(torch.tensor([0.5, 0.25, 0.125, 0.0625]),)),
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
    attend(Sequences(replace(ATTENTION[name], target=level), [71, 3]), [68, 1], [1, 1])


def test_threads_that_hold_the_same_sum_agree_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys divided over programs: what each of them found is added up by several warps alike."""
    run_compiled(monkeypatch, "sm_80", attention_regions)
    attend(Sequences(attention_regions.Case(dtype=F32, heads=6, cores=8, target="sm_80"), [300]), [299], [1])


SYNCHRONISES = re.compile(
    r"^\s*(bar\.sync|cp\.async\.(wait|commit)|fence\.proxy|wgmma\.(fence|commit|wait)|grid\S+wait)", re.M
)


def test_whatever_synchronises_a_kernel_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear with copies in the background and matrices of a group of warps, without each of them in turn."""
    case = Case("bf16", n=64, k=256, rows=70, target="sm_90")
    texts: list[str] = []

    def without(place: int) -> Callable[[str], str]:
        def edit(ptx: str) -> str:
            found = list(SYNCHRONISES.finditer(ptx))
            if ".visible .entry linear(" not in ptx:
                return ptx
            texts[:] = [one.group(1) for one in found]
            start = found[place].start(1) if place < len(found) else len(ptx)
            return ptx[:start] + "//" + ptx[start:]

        return edit

    run_compiled(monkeypatch, "sm_90", linear_regions, edit=without(1 << 20))
    linear_regions.check(case)
    missed: dict[str, list[bool]] = {}
    for place in range(len(texts)):
        run_compiled(monkeypatch, "sm_90", linear_regions, edit=without(place))
        try:
            linear_regions.check(case)
        except KernelFailed:
            missed.setdefault(texts[place], []).append(True)
        else:
            missed.setdefault(texts[place], []).append(False)
    # The first of the groups of copies may as well be one with the second, and one barrier stands before memory that
    # nobody has used since the one before it.
    assert missed.pop("cp.async.commit").count(False) == 1
    barriers = missed.pop("bar.sync")
    assert barriers.count(False) <= 1 < len(barriers)
    assert all(all(each) for each in missed.values()), missed
    assert len(missed) == 6
