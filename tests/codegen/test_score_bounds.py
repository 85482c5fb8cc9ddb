"""Which attentions can do without a running maximum."""

from dataclasses import replace

import pytest
import torch

from llmc.codegen.layout import Buffer, View, fresh
from llmc.codegen.regions import Attention, HeadPart, Linear, Norm, Rotation, RowOp, RowRegion
from llmc.codegen.triton.score_bounds import LOG2E, ScoreBound, score_bound

GAMMAS = {"q": torch.tensor([0.5, -2.0, 1.0, 0.25]), "k": torch.tensor([0.0, 1.0, 0.5, -0.5])}


UNSEEN = "are turned by a RoPE that is not seen to keep their norms"


def _value(key: int, name: str, width: int, place: str = "arena") -> View:
    domain = "T" if place == "arena" else ""
    buffer = Buffer(key, name, domain, width, "f32", place)  # type: ignore[arg-type]
    return fresh(buffer, (None, width) if domain else (width,))


QUERY, COS, SIN = _value(0, "query", 8), _value(1, "cos", 4), _value(2, "sin", 4)
HALF, OTHER, ANGLES = _value(5, "half", 2), _value(6, "other", 2), _value(7, "angles", 4)
FIRST, SECOND = (View(ANGLES.buffer, HALF.axes, offset) for offset in (0, 2))
ATTENTION = Attention(
    "a", "", 0, 2, 1, 4, 4, QUERY, _value(3, "output", 8), None, (), "k <= q", "0", 0.5, 0.0, ()
)  # fmt: skip


def _regions(
    factor: bool = False, normed: str = "qk", second: View = HALF, sines: View = ANGLES, interleaved: bool = False
) -> list[RowRegion | Linear]:
    ops = [RowOp("copy", "", (HALF,), (FIRST,)), RowOp("copy", "", (second,), (SECOND, ANGLES))]
    ops += [RowOp("cos", "", (ANGLES,), (COS,)), RowOp("sin", "", (sines,), (SIN,))]
    ops += [RowOp("mul", "", (COS,), (COS,))] if factor else []
    parts = tuple(
        HeadPart(
            role,
            1,
            Norm("rms_norm", _value(4, role, 4, "weight"), None, 1e-6, 0.0) if role in normed else None,
            Rotation(COS, SIN, 4, interleaved),
            QUERY if role == "q" else None,
            0 if role == "k" else -1,
        )
        for role in "qk"
    )
    linear = Linear("l", "", "T", "bf16", 8, 8, (), QUERY, None, "", (), None, parts, (), 4, ())
    return [RowRegion("r", "", "T", tuple(ops), ()), linear]


def test_norms_of_queries_and_keys_bound_scores() -> None:
    bound = score_bound(ATTENTION, _regions(), GAMMAS.__getitem__)
    found = bound.value
    assert found == pytest.approx(0.5 * LOG2E * 4 * 2.0 * 1.0, rel=0.03)
    assert found is not None and found > 0.5 * LOG2E * 4 * 2.0
    assert bound.why == "RMS norms of queries and keys (norms up to 4.0 and 2.0)"


@pytest.mark.parametrize(
    ("regions", "why"),
    [
        (_regions(factor=True), f"queries {UNSEEN}"),
        (_regions(second=OTHER), f"queries {UNSEEN}"),
        (_regions(sines=OTHER), f"queries {UNSEEN}"),
        (_regions(interleaved=True), f"queries {UNSEEN}"),
        (_regions(normed="q"), "keys have no RMS norm"),
        (_regions(normed="k"), "queries have no RMS norm"),
        ([], "queries and keys are not written by one linear each"),
    ],
)
def test_what_is_not_known_is_no_bound(regions: list[RowRegion | Linear], why: str) -> None:
    bound = score_bound(ATTENTION, regions, GAMMAS.__getitem__)
    assert bound == ScoreBound(None, why)
    assert bound.note("bfloat16") == f"running maximum: {why}"


def test_a_softcap_is_a_bound_and_a_bias_is_none() -> None:
    bound = score_bound(replace(ATTENTION, softcap=50.0), [], GAMMAS.__getitem__)
    assert bound.value == pytest.approx(50 * LOG2E)
    assert bound.note("bfloat16") == "no running maximum: weights up to 2^72.1, by a softcap of 50"
    biased = score_bound(replace(ATTENTION, softcap=50.0, bias="q - k"), [], GAMMAS.__getitem__)
    assert biased == ScoreBound(None, "scores have a bias")


def test_a_bound_that_is_too_great_or_weights_of_fp16_need_the_maximum() -> None:
    assert ScoreBound(90.0, "it").maximum_with("float32") == ""
    assert "more than 2^90" in ScoreBound(91.0, "it").maximum_with("float32")
    assert "fp16" in ScoreBound(9.0, "it").maximum_with("float16") and ScoreBound(9.0, "it").maximum_with("int8")
