"""Masks become formulas of positions, and a wrong formula stops the build."""

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from support.check_pass import check_pass, trace
from torch import Tensor, nn

from llmc.errors import BuildFailed, UnsupportedModel
from llmc.ir.mask import KEY, QUERY
from llmc.ir.model import Model, Origin
from llmc.ir.rewrite import Rewriter
from llmc.passes import lift_masks
from llmc.passes.lift_masks import LiftMasks

HEADS, SIZE = 4, 8
MASKED = torch.ops.llmc.masked_attention.default
DYNAMIC = {0: [2], 1: [2]}
LOW = torch.finfo(torch.float32).min


def inputs(length: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, HEADS, length, SIZE, generator=generator), torch.randint(3, 9, (1, 1, length))


def attend(mask: Callable[[Tensor, Tensor], Tensor | None], causal: bool = False, sinks: bool = False) -> Any:
    """Attention of x to itself under a mask made of the positions [S] and the token ids [1, 1, S]."""

    def run(x: Tensor, ids: Tensor) -> Tensor:
        made = mask(torch.arange(x.shape[2]), ids)
        sink = torch.linspace(-1, 1, HEADS) if sinks else None
        return torch.ops.llmc.attention(x, x, x, made, sink, 0.3, 0.0, causal)

    return run


def added(mask: Tensor, low: float = -torch.inf) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, low)


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None]
WINDOW = "(k <= q) & (q - k < 4)"
SPELLINGS: dict[str, tuple[Any, str, str]] = {
    "no mask": (attend(lambda p, ids: None), "True", "0"),
    "the flag": (attend(lambda p, ids: None, causal=True), "k <= q", "0"),
    "the flag and a window": (attend(lambda p, ids: p > p[:, None] - 4, causal=True), WINDOW, "0"),
    "comparison": (attend(lambda p, ids: p <= p[:, None]), "k <= q", "0"),
    "comparison turned round": (attend(lambda p, ids: ~(p[:, None] < p)), "k <= q", "0"),
    "tril of bools": (attend(lambda p, ids: torch.ones(p.shape[0], p.shape[0]).tril().bool()), "k <= q", "0"),
    "triu of infinities": (
        attend(lambda p, ids: torch.full((p.shape[0], p.shape[0]), -torch.inf).triu(1)),
        "k <= q",
        "0",
    ),
    "masked fill with the least number": (attend(lambda p, ids: added(p <= p[:, None], LOW)), "k <= q", "0"),
    "one minus, times a low number": (
        attend(lambda p, ids: (1.0 - torch.ones(p.shape[0], p.shape[0]).tril()) * -1e9),
        "k <= q",
        "0",
    ),
    "where": (attend(lambda p, ids: torch.where(p <= p[:, None], 0.0, LOW)), "k <= q", "0"),
    "window": (attend(lambda p, ids: (p <= p[:, None]) & (p > p[:, None] - 4)), WINDOW, "0"),
    "window by triangles": (
        attend(lambda p, ids: torch.ones(p.shape[0], p.shape[0]).tril().triu(-3).bool()),
        WINDOW,
        "0",
    ),
    "window filled twice": (
        attend(lambda p, ids: added(p <= p[:, None]).masked_fill(p[:, None] - p >= 4, -torch.inf)),
        WINDOW,
        "0",
    ),
    "chunks": (
        attend(lambda p, ids: (p <= p[:, None]) & (p // 4 == p[:, None] // 4)),
        "(k <= q) & (k // 4 == q // 4)",
        "0",
    ),
    "positions from cumulated ones": (
        attend(lambda p, ids: ids.new_ones(ids.shape).cumsum(-1) - 1 <= p[:, None]),
        "k <= q",
        "0",
    ),
    "alibi": (
        attend(lambda p, ids: added(p <= p[:, None]) + SLOPES * (p - p[:, None])),
        "k <= q",
        "k * t0[h, 0, 0]",
    ),
    "alibi next to a sink": (
        attend(lambda p, ids: SLOPES * (p - p[:, None]), causal=True, sinks=True),
        "k <= q",
        "(k * t0[h, 0, 0]) - (q * t0[h, 0, 0])",
    ),
    "a mask of each head": (
        attend(lambda p, ids: added(p[:, None] - p < 2 + torch.arange(4)[:, None, None])),
        "h + k - q > -2",
        "0",
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_becomes_a_formula(name: str) -> None:
    function, mask, bias = SPELLINGS[name]
    model = check_pass(LiftMasks(), function, *inputs(), dynamic=DYNAMIC, changes=1)
    (node,) = model.calls(MASKED)
    assert node.args[5] == mask
    assert node.args[6] == bias


def test_equal_masks_are_lifted_once() -> None:
    def two(x: Tensor, ids: Tensor) -> Tensor:
        mask = torch.ones(x.shape[2], x.shape[2]).tril().bool()
        for _ in range(2):
            x = torch.ops.llmc.attention(x, x, x, mask, None, 0.3, 0.0, False)
        return x

    model = trace(two, *inputs(), dynamic=DYNAMIC)
    rewriter = Rewriter(model)
    assert LiftMasks().run(model, rewriter) == 2
    assert [done.rule for done in rewriter.applied] == ["lift_masks", "lift_masks"]
    model = trace(two, *inputs(), dynamic=DYNAMIC)
    assert LiftMasks().run(model, Rewriter(model, stop_after=1)) == 1
    assert len(list(model.calls(MASKED))) == 1


class Tables(nn.Module):
    """Attention under a mask that is kept as a buffer."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        mask = self.table[..., : x.shape[2], : x.shape[2]]
        return torch.ops.llmc.attention(x, x, x, mask, None, 0.3, 0.0, True)


def test_a_band_in_a_buffer_is_a_formula_and_the_buffer_goes() -> None:
    table = torch.ones(32, 32).tril().triu(-3).bool()[None, None]
    model = check_pass(LiftMasks(), Tables(table), *inputs(), dynamic=DYNAMIC, changes=1)
    (node,) = model.calls(MASKED)
    assert node.args[4:7] == ([], WINDOW, "0")
    assert list(model.weights) == []


def test_what_is_no_band_stays_a_table_read_by_position() -> None:
    table = torch.randn(HEADS, 32, 32, generator=torch.Generator().manual_seed(0)).square()
    model = check_pass(LiftMasks(), Tables(table), *inputs(), dynamic=DYNAMIC, changes=1)
    (node,) = model.calls(MASKED)
    assert node.args[5:7] == ("k <= q", "t0[h, q, k]")
    assert list(model.weights) == ["table"]


def lifted(function: Any) -> Model:
    model = trace(function, *inputs(), dynamic=DYNAMIC)
    for node in model.calls():
        node.meta["origin"] = Origin("layers.3.attention", "modeling_x.py:7")
    LiftMasks().run(model, Rewriter(model))
    return model


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            lambda p, ids: ids[0, 0] > 4,
            r"the mask of attention\w* \(layers\.3\.attention at modeling_x\.py:7\) is not index arithmetic: "
            r"(ids|placeholder|aten\.\S+) at .*; expected a mask that depends on positions alone",
        ),
        (
            lambda p, ids: torch.sin(p.float()) > 0,
            r"is not index arithmetic: aten\.sin\.default at layers\.3\.attention",
        ),
        (lambda p, ids: p > p.shape[0] - 3, r"the mask of .* depends on the length of the sequence: .*S"),
        (lambda p, ids: (p - p.shape[0]).float(), r"the bias of .* depends on the length of the sequence"),
    ],
    ids=["token values", "no index arithmetic", "length in a mask", "length in a bias"],
)
def test_what_is_no_function_of_positions_is_refused(mask: Any, message: str) -> None:
    sinks = "bias" in message  # without one, a term that is the same for a whole row drops out
    with pytest.raises(UnsupportedModel, match=message):
        lifted(attend(mask, causal=True, sinks=sinks))


def test_a_formula_without_the_window_is_caught_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(predicate: sympy.Basic) -> sympy.Basic:
        return sympy.Le(KEY, QUERY)

    monkeypatch.setattr(lift_masks, "canonical", forgetful)
    with pytest.raises(BuildFailed, match=r"rewrite 1, lift_masks, at .*mask 'k <= q' with bias '0' is not the mask"):
        lifted(SPELLINGS["window"][0])
    lifted(SPELLINGS["comparison"][0])


def test_a_formula_with_another_bias_is_caught_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    right = lift_masks.lift

    def doubled(*args: Any) -> lift_masks.Lifted:
        found = right(*args)
        return lift_masks.Lifted(found.mask, f"2 * ({found.bias})", found.tables)

    monkeypatch.setattr(lift_masks, "lift", doubled)
    with pytest.raises(BuildFailed, match="lift_masks"):
        lifted(SPELLINGS["alibi"][0])
