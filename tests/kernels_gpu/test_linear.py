"""Linears in the interpreter against the dialect's reference, at odd sizes: formats, variants, prologues, epilogues."""

import pytest
import torch
from support.linear_cases import Case
from support.linear_regions import Made, check

from llmc.codegen.layout import Buffer
from llmc.codegen.triton.emit_weights import load_weight
from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.runtime.cuda.plan import ONE, Extent

FLOATS = ("f32", "f16", "bf16")
FORMATS = (*FLOATS, "fp8", "int8", "int6", "int6g16", "int4", "int4g64", "int4g128", "int4m")
VARIANTS = {1: "up to 8", 9: "up to 16", 17: "up to 32", 33: "up to 64", 70: "blocks of"}


@pytest.mark.parametrize("rows", VARIANTS)
@pytest.mark.parametrize("format", FORMATS)
def test_each_format_in_matrix_units(format: str, rows: int) -> None:
    launched = check(Case(format, n=24, k=200, rows=rows, flat=1))
    assert VARIANTS[rows] in launched[-1]


@pytest.mark.parametrize("rows", [1, 3, *VARIANTS])
@pytest.mark.parametrize("format", ["bf16", "fp8", "int4"])
def test_rows_that_are_stored_as_they_are_multiplied(format: str, rows: int) -> None:
    """One launch, whatever the rows: none has to make them ready."""
    assert len(check(Case(format, n=24, k=192, rows=rows, narrow=True))) == 1


@pytest.mark.parametrize("format", [format for format in FORMATS if format not in FLOATS])
@pytest.mark.parametrize("k", [200, 700])
def test_each_packed_format_with_one_row(format: str, k: int) -> None:
    (launched,) = check(Case(format, n=24, k=k, rows=1, flat=2))
    assert "1 row" in launched


@pytest.mark.parametrize("case", [Case(), Case(format="int4", gate="silu")])
def test_large_tiles(case: Case) -> None:
    check(Case(**(vars(case) | {"n": 3900 if case.gate else 1950, "k": 64, "rows": 66})))


SHARED = {
    "int4": Case("int4", n=60, k=4096, rows=20, chain=("add",)),
    "bf16": Case("bf16", n=40, k=4096, rows=5),
    "gate": Case("int8", n=96, k=2048, rows=40, gate="silu", source="rms_norm", bias=True),
    "two sets": Case("bf16", n=96, k=4096, rows=12, gate="silu", source="gelu"),
    "heads": Case(
        "int6", heads=(("q", 2), ("k", 1), ("v", 1)), n=4 * 32, k=4096, head_size=32, rotated=32, rows=12,
        source="rms_norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARED)
def test_columns_that_programs_share(case: str) -> None:
    """The last of them, whichever it is, adds up what all have left."""
    assert "columns shared by" in check(SHARED[case])[-1]


def test_tiles_of_64_rows_whose_warps_share_columns() -> None:
    check(Case("int4", gate="silu", n=6000, k=160, rows=40))


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("format", FLOATS)
def test_floats_on_ordinary_lanes(format: str, rows: int) -> None:
    (launched,) = check(Case(format, n=37, k=300, rows=rows))
    assert "ordinary lanes" in launched


@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 33), (5, 640), (64, 1024)])
@pytest.mark.parametrize(("format", "rows"), [("bf16", 1), ("bf16", 5), ("int4", 2)])
def test_sizes(format: str, rows: int, n: int, k: int) -> None:
    check(Case(format, n=n, k=k, rows=rows))


@pytest.mark.parametrize(("format", "rows"), [("bf16", 1), ("bf16", 5), ("bf16", 10), ("f16", 2), ("int4", 20)])
@pytest.mark.parametrize("source", ["rms_norm", "layer_norm", "gated_act", "gelu", "neg"])
def test_prologues(format: str, source: str, rows: int) -> None:
    check(Case(format, n=24, k=300, rows=rows, source=source))


@pytest.mark.parametrize(("format", "rows"), [("f32", 1), ("bf16", 2), ("bf16", 12), ("int8", 40)])
@pytest.mark.parametrize("gate", ["", "silu", "gelu_tanh", "gelu"])
def test_gates_and_chains(format: str, gate: str, rows: int) -> None:
    chain = ("add", "relu", "mul", "scale", "weigh", "sub", "neg")
    check(Case(format, n=96, k=64, rows=rows, gate=gate, bias=True, chain=chain))


@pytest.mark.parametrize("format", ["fp8", "int8", "int6", "int6g16", "int4", "int4m"])
def test_targets_without_inline_assembly(format: str) -> None:
    check(Case(format, n=24, k=100, rows=3, target="gfx942"))


HEADS = {
    "llama": Case(heads=(("q", 4), ("k", 2), ("v", 2)), n=8 * 32, head_size=32, rotated=32, source="rms_norm"),
    "partial": Case(heads=(("q", 2), ("k", 2), ("v", 2)), n=6 * 48, head_size=48, rotated=16, bias=True),
    "interleaved": Case(
        heads=(("q", 4), ("k", 2), ("v", 2)), n=8 * 16, rotated=16, interleaved=True, interleaved_parts=True
    ),
    "no rope": Case(heads=(("q", 3), ("k", 3), ("v", 3)), n=9 * 16, bias=True, cache="float32", interleaved_parts=True),
    "store": Case(heads=(("q", 2), ("k", 1), ("v", 1)), n=4 * 16, rotated=8, cache="float16", format="int8"),
    "norm": Case(
        heads=(("q", 4), ("k", 2), ("v", 2)), n=8 * 32, head_size=32, rotated=32, head_norm="rms_norm", bias=True
    ),
    "layer norm": Case(
        heads=(("q", 4), ("k", 2), ("v", 2)), n=8 * 48, head_size=48, rotated=24, head_norm="layer_norm",
        interleaved=True, interleaved_parts=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 12])
@pytest.mark.parametrize("case", HEADS)
def test_heads(case: str, rows: int) -> None:
    check(Case(**(vars(HEADS[case]) | {"rows": rows, "gemm": 10})))


@pytest.mark.parametrize("rows", [1, 3, 30])
def test_rows_of_logits_are_looked_up(rows: int) -> None:
    check(Case(n=50, rows=rows, domain="R", indirect=True, source="rms_norm"))


@pytest.mark.parametrize("format", ["bf16", "int4"])
def test_a_linear_without_rows(format: str) -> None:
    launched = check(Case(format, domain=""))
    assert len(launched) == 1


@pytest.mark.parametrize("case", [Case(gate="silu"), Case(format="int4"), HEADS["norm"]])
@pytest.mark.parametrize(("flat", "gemm"), [(1, 1), (1, 9), (4, 65), (2, 20), (2**31 - 1, 2**31 - 1)])
def test_every_number_of_rows_has_its_launches(case: Case, flat: int, gemm: int) -> None:
    drafts = Made(Case(**(vars(case) | {"flat": flat, "gemm": gemm}))).drafts()
    for rows in (1, 2, 3, 4, 5, 8, 9, 16, 17, 19, 20, 32, 33, 64, 65, 66, 200):
        kinds = [draft.kernel.kind for draft in drafts if draft.when.holds({"T": rows, "R": 1, "B": 1})]
        assert kinds.count("linear") == 1, f"{rows} rows: {kinds}"
        assert kinds.count("heads") == (1 if case.head_norm else 0)


def test_a_layer_of_one_token_is_one_launch_each() -> None:
    for case in (HEADS["llama"], Case(gate="silu", source="rms_norm"), Case(chain=("add",))):
        drafts = Made(case).drafts()
        assert sum(draft.when.holds({"T": 1, "R": 1, "B": 1}) for draft in drafts) == 1


@pytest.mark.parametrize("format", FORMATS)
def test_single_elements_of_a_weight(format: str) -> None:
    made = Made(Case(format, n=40, k=200))
    made.rearrange()
    rows, columns = torch.tensor([39, 0, 17, 16]), torch.arange(256)
    text = KernelText("gather")
    names = tuple(f"part_{number}" for number in range(len(made.parts)))
    buffer = Buffer(0, "found", "T", 256, "f32", "arena")
    text.add("row = tl.load(rows + tl.program_id(0))", "column = tl.arange(0, 256)")
    row, found = text.step("rows"), text.pointer(buffer, "found")
    values = load_weight(text, names, format, 40, 200, "row", "column", "column < 200")
    text.add(f"tl.store({found} + tl.program_id(0) * 256 + column, {values}, mask=column < 200)")
    made.given["step", row] = rows
    made.arrays[0] = torch.zeros(4, 256)
    made.launch(Draft(text, (Extent(times=4), ONE, ONE)), {})
    assert torch.equal(made.arrays[0][:, :200], made.weight[rows][:, columns[:200]])
