"""Variants of regions: which serves how many rows, and why not the others."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.codegen.select import (
    SCANNED_ROWS,
    Crossovers,
    M,
    choose_attention,
    choose_linear,
    linear_variants,
    predict,
)
from llmc.codegen.target import PRESETS, Target
from llmc.errors import BadOption
from llmc.ir.packed_formats import FORMATS
from llmc.runtime.crossover import NEVER, PREDICTED, Crossover, linear_key

HERE = Target.preset("avx512")


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(sorted(PRESETS)),
)
def test_every_number_of_rows_has_one_legal_variant(n: int, k: int, format: str, target: str) -> None:
    choices = choose_linear("linear", n, k, format, Target.preset(target))
    ends = [choice.m_range for choice in choices]
    assert ends[0][0] == 1
    assert ends[-1][1] is None
    for (_, last), (first, _) in pairwise(ends):
        assert first == last + 1  # type: ignore[operator]
    for choice in choices:
        variants = {"gemv", "flat", "gemm"} | ({"library"} if target.startswith("sm_") else set())
        assert {choice.variant, *(name for name, _ in choice.others)} == variants
        assert all(reason for _, reason in choice.others)


def test_predicted_crossovers_are_where_the_expressions_meet() -> None:
    crossover = predict(3072, 576, "int4", HERE)
    gemv, flat, gemm = (variant.seconds for variant in linear_variants(3072, 576, "int4", HERE))
    assert 2 <= crossover.flat < crossover.gemm < SCANNED_ROWS
    assert flat.subs(M, crossover.flat) < gemv.subs(M, crossover.flat)
    assert gemm.subs(M, crossover.gemm) < flat.subs(M, crossover.gemm)
    assert gemm.subs(M, crossover.gemm - 1) >= flat.subs(M, crossover.gemm - 1)


def test_a_single_row_reads_the_weight_once_at_the_speed_of_memory() -> None:
    gemv = linear_variants(49152, 576, "int4", HERE)[0]
    assert float(gemv.seconds.subs(M, 1)) == pytest.approx(49152 * 576 * 4.75 / 8 / 45e9, rel=0.01)


def test_measurements_win() -> None:
    document = {"linear": {"960x576:int4": {"flat": 3, "gemm": 11, "source": "measured on an EPYC"}}}
    table = Crossovers.from_json(document)
    gemv, flat, gemm = choose_linear("qkv", 960, 576, "int4", HERE, table)
    assert [choice.m_range for choice in (gemv, flat, gemm)] == [(1, 2), (3, 10), (11, None)]
    assert gemv.others == (
        ("flat", "used from 3 rows on (measured on an EPYC)"),
        ("gemm", "used from 11 rows on (measured on an EPYC)"),
    )
    assert Crossovers.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert table.get(576, 960, "int4", HERE) == predict(576, 960, "int4", HERE)
    assert linear_key(960, 576, "int4") in table.linear


@pytest.mark.parametrize("format", ["bf16", "int8", "int4", "fp8"])
def test_a_library_serves_once_rows_pay_for_the_kernels_around_it(format: str) -> None:
    """Unpacked weights pass through memory twice more, so that it takes more rows to pay for them."""
    target = Target.preset("sm_90")
    crossover = predict(14336, 4096, format, target)
    *_, gemm, library = (variant.seconds for variant in linear_variants(14336, 4096, format, target))
    assert crossover.gemm <= crossover.library < NEVER
    assert (crossover.library == crossover.gemm) == (format == "bf16")
    assert library.subs(M, crossover.library) < gemm.subs(M, crossover.library)
    assert format == "bf16" or library.subs(M, crossover.library - 1) >= gemm.subs(M, crossover.library - 1)
    assert predict(2048, 2048, format, target).library > crossover.library, "launches cost more of a small linear"
    assert predict(64, 64, format, target).library == NEVER
    *_, last = choose_linear("down", 14336, 4096, format, target)
    assert last.variant == "library" and last.m_range == (crossover.library, None)
    assert dict(last.others)["gemm"].endswith("used where cuBLAS is not found")


def test_what_has_no_library_says_why() -> None:
    target = Target.preset("sm_90")
    last = choose_linear("head", 128256, 4096, "int8", target, domain="R")[-1]
    assert (last.variant, last.m_range) == ("gemm", (65, None))
    assert dict(last.others)["library"] == "a table for logits is too large to be unpacked whole"
    assert choose_linear("head", 128256, 4096, "bf16", target, domain="R")[-1].variant == "library"
    assert "library" not in dict(choose_linear("down", 14336, 4096, "bf16", Target.preset("gfx942"))[0].others)


def test_panels_of_floats_are_refused_with_the_reason() -> None:
    choices = choose_linear("head", 49152, 576, "bf16", HERE)
    assert [choice.variant for choice in choices] == ["gemv", "flat"]
    assert dict(choices[0].others)["gemm"].startswith("weights of bf16 are multiplied as they are stored")
    assert "panels of integers only" in dict(choose_linear("head", 49152, 576, "f16", HERE)[0].others)["gemm"]
    assert predict(49152, 576, "bf16", HERE).gemm == NEVER


@pytest.mark.parametrize(
    "document",
    [{"linear": []}, {"linear": {"1x1:f32": 3}}, {"linear": {"1x1:f32": {"flat": 9, "gemm": 2}}},
     {"linear": {"1x1:f32": {"flat": True, "gemm": 2}}}, {"linear": {"1x1:f32": {"flat": 0, "gemm": 2}}}],
)  # fmt: skip
def test_damaged_tables_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(BadOption, match="tuning table"):
        Crossovers.from_json(document)


def test_an_empty_table_predicts() -> None:
    assert Crossovers.from_json({}) == Crossovers()
    assert Crossover(2, 17).source == PREDICTED
    listed = Crossovers.from_json({"linear": {"1x1:f32": [2, 9]}})
    assert listed.linear["1x1:f32"] == Crossover(2, 9, "measured")


def test_a_default_stands_for_what_is_not_known() -> None:
    table = Crossovers({"960x576:int4": Crossover(3, 9, "measured")}, Crossover(2, 17, "default"))
    assert table.get(960, 576, "int4", HERE).gemm == 9
    assert table.get(961, 576, "int4", HERE).gemm == 17
    (gemv, *_) = choose_linear("o", 961, 576, "int4", HERE, table)
    assert dict(gemv.others)["gemm"] == "used from 17 rows on (default)"


def test_attention_is_split_where_there_are_few_tiles() -> None:
    split, flash = choose_attention("attention", 9, 3, 64, 64, 1536, HERE)
    assert (split.variant, flash.variant) == ("split", "flash")
    assert split.m_range[0] == 1 and flash.m_range[0] == split.m_range[1] + 1  # type: ignore[operator]
    assert "3 key heads" in split.others[0][1]
    wide = choose_attention("attention", 9, 3, 64, 64, 1536, Target.preset("sm_90"))
    assert wide[1].m_range[0] > flash.m_range[0]


@pytest.mark.parametrize("level", ["sm_80", "sm_89", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize(("n", "k"), [(960, 576), (3072, 2048), (28672, 4096), (128256, 4096)])
def test_crossovers_of_gpus(level: str, n: int, k: int) -> None:
    target = Target.preset(level)
    for format, flat in (("bf16", 4), ("f16", 4), ("f32", 4), ("fp8", 2), ("int8", 2), ("int4", 2)):
        found = predict(n, k, format, target)
        assert (found.flat, found.gemm) == (flat, 65), format


def test_variants_of_a_gpu_lose_for_a_reason() -> None:
    target = Target.preset("sm_90")
    floats = choose_linear("linear", 3072, 2048, "bf16", target)
    assert [(choice.variant, choice.m_range) for choice in floats] == [
        ("gemv", (1, 3)),
        ("flat", (4, 64)),
        ("gemm", (65, 256)),
        ("library", (257, None)),
    ]
    assert dict(floats[1].others)["gemv"] == "takes at most 3 rows"
    levels = choose_linear("linear", 4096, 4096, "int4", target)
    assert [choice.variant for choice in levels] == ["gemv", "flat", "gemm", "library"]
    assert dict(levels[1].others)["gemv"] == "takes at most 1 row"
