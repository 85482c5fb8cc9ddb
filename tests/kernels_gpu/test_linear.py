"""Linears in the interpreter against the dialect's reference, at odd sizes: formats, variants, prologues, epilogues."""

import pytest
from support.linear_regions import Case, Made, check

FLOATS = ("f32", "f16", "bf16")
FORMATS = (*FLOATS, "fp8", "int8", "int6", "int4", "int4g64", "int4g128", "int4m")
VARIANTS = {1: "up to 8", 9: "up to 16", 17: "up to 32", 33: "up to 64", 70: "blocks of"}


@pytest.mark.parametrize("rows", VARIANTS)
@pytest.mark.parametrize("format", FORMATS)
def test_each_format_in_matrix_units(format: str, rows: int) -> None:
    launched = check(Case(format, n=40, k=300, rows=rows, flat=1))
    assert VARIANTS[rows] in launched[-1]


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("format", FLOATS)
def test_floats_on_ordinary_lanes(format: str, rows: int) -> None:
    (launched,) = check(Case(format, n=37, k=300, rows=rows))
    assert "ordinary lanes" in launched


@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 32), (17, 33), (5, 640), (64, 1024)])
@pytest.mark.parametrize(("format", "rows"), [("bf16", 1), ("bf16", 5), ("int4", 2), ("int8", 1), ("f32", 2)])
def test_sizes(format: str, rows: int, n: int, k: int) -> None:
    check(Case(format, n=n, k=k, rows=rows))


@pytest.mark.parametrize("rows", [1, 3, 10, 20])
@pytest.mark.parametrize("source", ["rms_norm", "layer_norm", "gated_act", "gelu", "neg"])
@pytest.mark.parametrize("format", ["bf16", "f16", "int4"])
def test_prologues(format: str, source: str, rows: int) -> None:
    check(Case(format, n=24, k=300, rows=rows, source=source))


@pytest.mark.parametrize("rows", [1, 2, 12, 40])
@pytest.mark.parametrize("gate", ["", "silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
def test_gates_and_chains(format: str, gate: str, rows: int) -> None:
    chain = ("add", "relu", "mul", "scale", "weigh", "sub", "neg")
    check(Case(format, n=96, k=64, rows=rows, gate=gate, bias=True, chain=chain))


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


@pytest.mark.parametrize("rows", [1, 2, 9, 70])
@pytest.mark.parametrize("case", HEADS)
def test_heads(case: str, rows: int) -> None:
    check(Case(**(vars(HEADS[case]) | {"rows": rows})))


@pytest.mark.parametrize("rows", [1, 3, 30])
def test_rows_of_logits_are_looked_up(rows: int) -> None:
    check(Case(n=50, rows=rows, domain="R", indirect=True, source="rms_norm"))


@pytest.mark.parametrize("format", ["bf16", "int4"])
def test_a_linear_without_rows(format: str) -> None:
    launched = check(Case(format, domain=""))
    assert len(launched) == 1


@pytest.mark.parametrize("case", [Case(), Case(format="int4", gate="silu"), HEADS["norm"]])
@pytest.mark.parametrize(("flat", "gemm"), [(1, 1), (1, 9), (4, 65), (2, 20), (2**31 - 1, 2**31 - 1)])
def test_every_number_of_rows_has_its_launches(case: Case, flat: int, gemm: int) -> None:
    drafts = Made(Case(**(vars(case) | {"flat": flat, "gemm": gemm}))).drafts()
    for rows in range(1, 200):
        kinds = [draft.kernel.kind for draft in drafts if draft.when.holds({"T": rows, "R": 1, "B": 1})]
        assert kinds.count("linear") == 1, f"{rows} rows: {kinds}"
        assert kinds.count("heads") == (1 if case.head_norm else 0)


def test_a_layer_of_one_token_is_one_launch_each() -> None:
    for case in (HEADS["llama"], Case(gate="silu", source="rms_norm"), Case(chain=("add",))):
        drafts = Made(case).drafts()
        assert sum(draft.when.holds({"T": 1, "R": 1, "B": 1}) for draft in drafts) == 1
