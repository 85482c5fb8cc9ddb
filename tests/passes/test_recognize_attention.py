"""Attention is recognised however it is spelled, refused with a reason, and proved."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.check_pass import check_pass, trace
from support.tidied import TIDY
from torch import Tensor, fx
from torch.nn import functional

from llmc.errors import BuildFailed
from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes import recognize_attention
from llmc.passes.recognize_attention import RecognizeAttention

PASSES = (*TIDY, RecognizeAttention(), *TIDY)
ATTENTION = torch.ops.llmc.attention.default
HEADS, LENGTH, SIZE, WIDE = 4, 6, 8, 5
DYNAMIC = {0: [2]}


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


INPUT = randn(1, HEADS, LENGTH, 2 * SIZE + WIDE)
"""Queries, keys and values side by side, so that all have one length."""


def of_one(function: Callable[..., Any]) -> Callable[[Tensor], Any]:
    """A function of q [1, 4, S, 8], k [1, 4, S, 8] and v [1, 4, S, 5] as one of `INPUT`."""

    def run(x: Tensor) -> Any:
        return function(*x.split([SIZE, SIZE, WIDE], -1))

    return run


def causal(scores: Tensor) -> Tensor:
    return torch.ones(scores.shape[-2:], dtype=torch.bool).tril()


def masked(scores: Tensor) -> Tensor:
    return scores.masked_fill(~causal(scores), -torch.inf)


def found(model: Model) -> fx.Node:
    (node,) = model.calls(ATTENTION)
    return node


def facts(node: fx.Node) -> tuple[bool, bool, float, float, bool]:
    """(has a mask, has sinks, scale, softcap, causal) of an `attention`."""
    _, _, _, mask, sinks, scale, softcap, is_causal = node.args
    return mask is not None, sinks is not None, scale, softcap, is_causal  # type: ignore[return-value]


def softmax_of(scores: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Attention spelled out: the softmax of some scores of q and k, times v."""
    return lambda q, k, v: torch.matmul(torch.softmax(scores(q, k), -1), v)


def product(q: Tensor, k: Tensor) -> Tensor:
    return torch.matmul(q, k.transpose(-1, -2))


def joined_sink(scores: Tensor) -> Tensor:
    sinks = torch.arange(4.0).reshape(1, HEADS, 1, 1).expand(1, HEADS, scores.shape[-2], 1)
    return torch.cat([scores, sinks], dim=-1)


sdpa = functional.scaled_dot_product_attention
SPELLINGS: dict[str, tuple[Callable[..., Tensor], tuple[bool, bool, float, float, bool]]] = {
    "sdpa": (lambda q, k, v: sdpa(q, k, v), (False, False, SIZE**-0.5, 0.0, False)),
    "causal sdpa": (lambda q, k, v: sdpa(q, k, v, is_causal=True), (False, False, SIZE**-0.5, 0.0, True)),
    "sdpa with a scale": (lambda q, k, v: sdpa(q, k, v, scale=0.25), (False, False, 0.25, 0.0, False)),
    "sdpa with a mask": (
        lambda q, k, v: sdpa(q, k, v, attn_mask=causal(product(q, k))),
        (True, False, SIZE**-0.5, 0.0, False),
    ),
    "sdpa with an additive mask": (
        lambda q, k, v: sdpa(q, k, v, masked(torch.zeros(q.shape[2], k.shape[2])), 0.0),
        (True, False, SIZE**-0.5, 0.0, False),
    ),
    "sdpa of three dimensions": (
        lambda q, k, v: sdpa(q[0], k[0], v[0], is_causal=True)[None],
        (False, False, SIZE**-0.5, 0.0, True),
    ),
    "a scale after the product": (
        softmax_of(lambda q, k: masked(product(q, k) * 0.25)),
        (True, False, 0.25, 0.0, False),
    ),
    "a scale that divides": (softmax_of(lambda q, k: masked(product(q, k) / 5)), (True, False, 0.2, 0.0, False)),
    "a softmax in float32": (
        lambda q, k, v: torch.matmul(torch.softmax(product(q, k) * 0.5, -1, dtype=torch.float32).to(v.dtype), v),
        (False, False, 0.5, 0.0, False),
    ),
    "a softcap": (
        softmax_of(lambda q, k: masked(torch.tanh(product(q, k) * 0.25 / 20.0) * 20.0)),
        (True, False, 0.25, 20.0, False),
    ),
    "an additive mask": (
        softmax_of(lambda q, k: product(q, k) * 0.25 + masked(torch.zeros(q.shape[2], k.shape[2]))),
        (True, False, 0.25, 0.0, False),
    ),
    "an additive mask from the left": (
        softmax_of(lambda q, k: masked(torch.zeros(q.shape[2], k.shape[2])) + product(q, k) * 0.25),
        (True, False, 0.25, 0.0, False),
    ),
    "scaled after a bias is added": (
        softmax_of(lambda q, k: (product(q, k) + torch.arange(k.shape[2])) * 0.25),
        (True, False, 0.25, 0.0, False),
    ),
    "where that keeps": (
        softmax_of(lambda q, k: torch.where(causal(product(q, k)), product(q, k) * 0.25, -1e9)),
        (True, False, 0.25, 0.0, False),
    ),
    "where that hides": (
        softmax_of(lambda q, k: torch.where(~causal(product(q, k)), torch.tensor(-1e9), product(q, k) * 0.25)),
        (True, False, 0.25, 0.0, False),
    ),
    "alibi by baddbmm": (
        lambda q, k, v: torch.bmm(
            torch.softmax(
                torch.baddbmm(
                    torch.arange(HEADS)[:, None, None] * torch.arange(k.shape[2]).float()[None, None],
                    q[0],
                    k[0].transpose(1, 2),
                    beta=0.5,
                    alpha=0.25,
                ),
                -1,
            ),
            v[0],
        )[None],
        (True, False, 0.25, 0.0, False),
    ),
    "batched products of three dimensions": (
        lambda q, k, v: torch.bmm(torch.softmax(masked(torch.bmm(q[0], k[0].transpose(1, 2)) * 0.25), -1), v[0])[None],
        (True, False, 0.25, 0.0, False),
    ),
    "a sink in one more column": (
        lambda q, k, v: torch.matmul(
            torch.softmax(joined_sink(masked(product(q, k) * 0.25)), -1)[..., : k.shape[2]], v
        ),
        (True, True, 0.25, 0.0, False),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_becomes_one_op(name: str) -> None:
    function, expected = SPELLINGS[name]
    model = check_pass(PASSES, of_one(function), INPUT, dynamic=DYNAMIC, refused=[])
    has_mask, has_sinks, scale, softcap, is_causal = facts(found(model))
    assert (has_mask, has_sinks, is_causal) == (expected[0], expected[1], expected[4])
    assert (scale, softcap) == pytest.approx(expected[2:4])
    assert not list(model.calls(torch.ops.aten.softmax.int, torch.ops.aten._softmax.default))


def test_grouped_heads_stay_grouped() -> None:
    def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k[:, :2], v[:, :2], enable_gqa=True)

    model = check_pass(PASSES, of_one(grouped), INPUT, dynamic=DYNAMIC, refused=[])
    assert found(model).args[1].meta["val"].shape[1] == 2  # type: ignore[union-attr]


def test_one_value_may_be_query_key_and_value() -> None:
    for function in (lambda x: sdpa(x, x, x, is_causal=True), softmax_of(product), lambda x: sdpa(x + 1, x, x)):
        run = (lambda x, f=function: f(x, x, x)) if function.__code__.co_argcount == 3 else function
        model = check_pass(PASSES, run, INPUT[..., :SIZE].contiguous(), dynamic=DYNAMIC, refused=[])
        assert found(model).args[1] is found(model).args[2]


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "dropped scores": (lambda q, k, v: sdpa(q, k, v, dropout_p=0.5), "it drops scores at random"),
    "operands of another rank": (
        lambda q, k, v: sdpa(q[None], k[None], v[None])[0],
        "its operands have ranks 5, 5, 5, not 4",
    ),
    "a softmax over queries": (
        lambda q, k, v: torch.matmul(torch.softmax(product(q, k), -2), v),
        "the softmax is not over the keys",
    ),
    "a function of the scores": (
        softmax_of(lambda q, k: torch.exp(product(q, k))),
        "aten.exp.default lies between the softmax and the scores",
    ),
    "scores by distance": (
        softmax_of(lambda q, k: -(q[..., :, None, :] - k[..., None, :, :]).abs().sum(-1)),
        "aten.neg.default lies between the softmax and the scores",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_nearly_attention_is_refused_with_the_reason(name: str) -> None:
    function, reason = REFUSED[name]
    model = trace(of_one(function), INPUT, dynamic=DYNAMIC)
    for step in TIDY:
        step.run(model, Rewriter(model))
    rewriter = Rewriter(model)
    assert RecognizeAttention().run(model, rewriter) == 0
    assert [near.reason for near in rewriter.refused] == [reason]
    assert not list(model.calls(ATTENTION))


def test_a_product_without_a_softmax_is_no_near_miss() -> None:
    model = check_pass(
        PASSES, of_one(lambda q, k, v: torch.matmul(product(q, k), v)), INPUT, dynamic=DYNAMIC, refused=[]
    )
    assert not list(model.calls(ATTENTION))


def test_weights_used_elsewhere_too_stay_for_that_use() -> None:
    def both(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(product(q, k), -1)
        return torch.matmul(weights, v), weights

    model = check_pass(PASSES, of_one(both), INPUT, dynamic=DYNAMIC, refused=[])
    assert len(list(model.calls(ATTENTION))) == len(list(model.calls(torch.ops.aten.softmax.int))) == 1


def test_a_wrong_scale_is_caught_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recognize_attention._constant

    def wrong(value: object, *rest: Any) -> float | None:
        number = right(value, *rest)
        return None if number is None else number * 1.01

    monkeypatch.setattr(recognize_attention, "_constant", wrong)
    model = trace(of_one(softmax_of(lambda q, k: product(q, k) * 0.25)), INPUT, dynamic=DYNAMIC)
    with pytest.raises(BuildFailed, match="rewrite 1, recognize_attention, at "):
        RecognizeAttention().run(model, Rewriter(model))


def test_no_more_rewrites_are_made_than_asked_for() -> None:
    model = trace(of_one(lambda q, k, v: sdpa(sdpa(q, k, v), k[..., :WIDE], v)), INPUT, dynamic=DYNAMIC)
    rewriter = Rewriter(model, stop_after=1)
    assert RecognizeAttention().run(model, rewriter) == 1
    assert len(list(model.calls(ATTENTION))) == 1
