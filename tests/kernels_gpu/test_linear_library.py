"""Linears around a library's product in the interpreter: formats, prologues, epilogues, and what is launched when."""

import pytest
import torch
from support.linear_cases import Case
from support.linear_regions import Made, check

from llmc.codegen.triton.linear_formats import FORMS, padded_rows
from llmc.codegen.triton.linear_library import ProductDraft
from llmc.runtime.cuda.plan import NUMBER_BYTES

FORMATS = tuple(FORMS)
PACKED = tuple(format for format in FORMATS if format not in ("f32", "f16", "bf16"))


def case(**values: object) -> Case:
    """One that the library serves from nine rows on."""
    return Case(**({"n": 24, "k": 200, "rows": 9, "gemm": 5, "library": 9} | values))  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_each_format(format: str) -> None:
    launched = check(case(format=format))
    assert launched[-1] == "product", "sums are where results belong"
    assert [f"{format} [24, 200] as bfloat16" in launched] == [format in PACKED]


@pytest.mark.parametrize(("n", "k"), [(17, 33), (5, 640), (64, 1024)])
@pytest.mark.parametrize("format", ["bf16", "int4", "int6", "int4g128", "fp8"])
def test_sizes(format: str, n: int, k: int) -> None:
    check(case(format=format, n=n, k=k, rows=70))


@pytest.mark.parametrize("format", PACKED)
def test_weights_are_unpacked_to_the_nearest_numbers(format: str) -> None:
    made = Made(case(format=format, n=40, k=328))
    made.rearrange()
    unpack, product = (
        draft
        for draft in made.drafts()
        if isinstance(draft, ProductDraft) or draft.kernel.kind == "unpack"
    )  # fmt: skip
    made.launch(unpack, {})
    assert product.weight.argument is not None and product.weight.argument.kind == "workspace"
    found = made.given["workspace", "unpacked"].view(torch.bfloat16)
    assert found.numel() == padded_rows(40) * product.k
    found = found.reshape(-1, product.k)[:40]
    torch.testing.assert_close(found[:, :328].float(), made.weight, rtol=2.0**-8, atol=0)
    assert (found[:, :328].float() - made.weight).abs().max() > 0 or format == "fp8"
    assert found.isfinite().all(), "what fills up the rows meets zeros"


@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("gate", ["", "silu"])
def test_gates_and_chains(format: str, gate: str) -> None:
    chain = ("add", "relu", "mul", "scale", "weigh", "sub", "neg")
    launched = check(case(format=format, n=96, k=64, gate=gate, bias=True, chain=chain))
    assert launched[-2] == "product" and "results of a product" in launched[-1]


@pytest.mark.parametrize("source", ["rms_norm", "layer_norm", "gated_act", "gelu", "neg"])
def test_prologues(source: str) -> None:
    check(case(source=source, chain=("add",)))


@pytest.mark.parametrize("wide", [case(n=2100, k=32, chain=("add",)), case(n=4100, k=32, gate="silu", rows=10)])
def test_rows_longer_than_a_program_finishes(wide: Case) -> None:
    check(wide)


HEADS = {
    "llama": case(heads=(("q", 4), ("k", 2), ("v", 2)), n=8 * 32, head_size=32, rotated=32, source="rms_norm"),
    "partial": case(heads=(("q", 2), ("k", 2), ("v", 2)), n=6 * 48, head_size=48, rotated=16, bias=True),
    "interleaved": case(
        heads=(("q", 4), ("k", 2), ("v", 2)), n=8 * 16, head_size=16, rotated=16, interleaved=True,
        interleaved_parts=True,
    ),
    "no rope": case(heads=(("q", 3), ("k", 3), ("v", 3)), n=9 * 16, head_size=16, bias=True, cache="float32"),
    "store": case(heads=(("q", 2), ("k", 1), ("v", 1)), n=4 * 16, head_size=16, rotated=8, format="int8"),
    "norm": case(heads=(("q", 4), ("k", 2), ("v", 2)), n=8 * 32, head_size=32, rotated=32, head_norm="rms_norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    launched = check(HEADS[name])
    assert launched[-2] == "product"
    assert launched[-1].startswith("heads of" if name == "norm" else "results of a product")


def test_rows_of_logits_are_looked_up() -> None:
    launched = check(case(n=50, rows=12, domain="R", indirect=True, source="rms_norm"))
    assert launched[-1] == "product"


def test_a_packed_table_of_logits_is_not_unpacked() -> None:
    drafts = Made(case(format="int8", domain="R")).drafts()
    assert not any(isinstance(draft, ProductDraft) for draft in drafts)


def test_targets_of_other_vendors_have_no_library() -> None:
    drafts = Made(case(target="gfx942")).drafts()
    assert not any(isinstance(draft, ProductDraft) for draft in drafts)


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", "int4"])
def test_what_the_library_is_given_is_aligned(format: str) -> None:
    for draft in Made(case(format=format, k=33)).drafts():
        if isinstance(draft, ProductDraft):
            assert draft.k * NUMBER_BYTES[draft.dtype] % 16 == 0
            return
    pytest.fail("there is no product")


@pytest.mark.parametrize("gemm", [5, 9, 65])
def test_every_number_of_rows_has_one_variant(gemm: int) -> None:
    drafts = Made(Case(**(vars(HEADS["norm"]) | {"gemm": min(gemm, 30), "library": 30}))).drafts()
    for rows in (1, 3, 4, 5, 8, 9, 29, 30, 31, 64, 65, 200):
        taken = [draft for draft in drafts if draft.when.holds({"T": rows, "R": 1, "B": 1})]
        products = sum(isinstance(draft, ProductDraft) for draft in taken)
        kinds = [draft.kernel.kind for draft in taken if not isinstance(draft, ProductDraft)]
        assert (products, kinds.count("linear")) == ((1, 0) if rows >= 30 else (0, 1)), rows
        assert kinds.count("heads") == 1
