"""Which attentions can do without a running maximum."""

from dataclasses import replace

import pytest
import torch

from llmc.codegen.layout import Buffer, View, fresh
from llmc.codegen.regions import Attention, HeadPart, Linear, Norm, Rotation, RowOp, RowRegion
from llmc.codegen.triton.score_bounds import LOG2E, score_bound

GAMMAS = {"q": torch.tensor([0.5, -2.0, 1.0, 0.25]), "k": torch.tensor([0.0, 1.0, 0.5, -0.5])}


def _value(key: int, name: str, width: int, place: str = "arena") -> View:
    domain = "T" if place == "arena" else ""
    buffer = Buffer(key, name, domain, width, "f32", place)  # type: ignore[arg-type]
    return fresh(buffer, (None, width) if domain else (width,))


QUERY, COS, SIN = _value(0, "query", 8), _value(1, "cos", 2), _value(2, "sin", 2)
ATTENTION = Attention(
    "a", "", 0, 2, 1, 4, 4, QUERY, _value(3, "output", 8), None, (), "k <= q", "0", 0.5, 0.0, ()
)  # fmt: skip


def _regions(factor: bool = False, normed: str = "qk") -> list[RowRegion | Linear]:
    ops = [RowOp("cos", "", (), (COS,)), RowOp("sin", "", (), (SIN,))]
    ops += [RowOp("mul", "", (COS,), (COS,))] if factor else []
    parts = tuple(
        HeadPart(
            role,
            1,
            Norm("rms_norm", _value(4, role, 4, "weight"), None, 1e-6, 0.0) if role in normed else None,
            Rotation(COS, SIN, 4, False),
            QUERY if role == "q" else None,
            0 if role == "k" else -1,
        )
        for role in "qk"
    )
    linear = Linear("l", "", "T", "bf16", 8, 8, (), QUERY, None, "", (), None, parts, (), 4, ())
    return [RowRegion("r", "", "T", tuple(ops), ()), linear]


def test_norms_of_queries_and_keys_bound_scores() -> None:
    found = score_bound(ATTENTION, _regions(), GAMMAS.__getitem__)
    assert found == pytest.approx(0.5 * LOG2E * 4 * 2.0 * 1.0, rel=0.03)
    assert found is not None and found > 0.5 * LOG2E * 4 * 2.0


@pytest.mark.parametrize("regions", [_regions(factor=True), _regions(normed="q"), _regions(normed="k"), []])
def test_what_is_not_known_is_no_bound(regions: list[RowRegion | Linear]) -> None:
    assert score_bound(ATTENTION, regions, GAMMAS.__getitem__) is None


def test_a_softcap_is_a_bound_and_a_bias_is_none() -> None:
    assert score_bound(replace(ATTENTION, softcap=50.0), [], GAMMAS.__getitem__) == pytest.approx(50 * LOG2E)
    assert score_bound(replace(ATTENTION, softcap=50.0, bias="q - k"), [], GAMMAS.__getitem__) is None
