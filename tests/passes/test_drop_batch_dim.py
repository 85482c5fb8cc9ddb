"""The batch dimension of size 1 goes, whatever it passes through."""

from collections.abc import Callable

import pytest
import torch
from support.check_pass import assert_close, check_pass, op_counts, trace
from support.tiny_models import tiny, tokens
from torch import Tensor

from llmc.errors import BuildFailed
from llmc.frontend.hf import from_module
from llmc.ir.interpret import interpret
from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes import drop_batch_dim_rules
from llmc.passes.canonicalize import Canonicalize
from llmc.passes.drop_batch_dim import DropBatchDim
from llmc.passes.eliminate_common import EliminateCommon
from llmc.passes.eliminate_dead import EliminateDead
from llmc.passes.fold_constants import FoldConstants
from llmc.passes.lift_masks import LiftMasks
from llmc.passes.make_incremental import MakeIncremental
from llmc.passes.merge_views import MergeViews
from llmc.passes.recognize_attention import RecognizeAttention
from llmc.passes.recognize_rope import RecognizeRope

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
W = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
DYNAMIC = {0: [0]}


def tidied(function: Callable[..., Tensor], *examples: Tensor) -> Model:
    model = trace(function, *examples, dynamic=DYNAMIC)
    Canonicalize().run(model, Rewriter(model))
    return model


def check(function: Callable[..., Tensor], counts: dict[str, int], changes: int | None = None) -> None:
    model = tidied(function, X, W)
    check_pass(DropBatchDim(), model, X, W, dynamic=DYNAMIC, counts=counts, changes=changes)


def test_a_graph_without_the_dimension_is_left_alone() -> None:
    check(lambda x, w: torch.relu(x) @ w.t(), {"matmul": 1, "permute": 1, "relu": 1}, changes=0)


def test_a_dimension_that_is_needed_is_left_alone() -> None:
    check(lambda x, w: x[None] + w[:, None, :1], {"add": 1, "slice": 1, "unsqueeze": 2}, changes=0)


def heads(x: Tensor) -> Tensor:
    return x[None].reshape(1, -1, 4, 2).transpose(1, 2)


RULES: dict[str, tuple[Callable[..., Tensor], dict[str, int]]] = {
    "pointwise": (lambda x, w: (x[None] * 2 + x[None, :, :1] * w[0])[0], {"add": 1, "mul": 2, "select": 1, "slice": 1}),
    "linear": (lambda x, w: torch.nn.functional.linear(x[None], w)[0], {"linear": 1}),
    "matmul": (
        lambda x, w: (heads(x) @ heads(x).mT)[0],
        {"matmul": 1, "permute": 2, "reshape": 1},
    ),
    "norm": (
        lambda x, w: torch.ops.llmc.rms_norm(x[None], w[:1], 1e-5, 0.0, False)[0],
        {"rms_norm": 1, "slice": 1},
    ),
    "reshape and permute": (lambda x, w: heads(x).transpose(1, 2).reshape(-1, 8), {"permute": 2, "reshape": 2}),
    "reshape to another place": (lambda x, w: x[None].reshape(-1, 1, 8).squeeze(1) * 2, {"mul": 1}),
    "expand": (lambda x, w: (x[None, :, None].expand(1, -1, 3, -1) * 2)[0], {"expand": 1, "mul": 1, "unsqueeze": 1}),
    "cat": (lambda x, w: torch.cat((x[None], x[None] * 2), dim=-1)[0], {"cat": 1, "mul": 1}),
    "split": (
        lambda x, w: (lambda a, b: a * b)(*x[None].split([4, 4], dim=-1))[0],
        {"getitem": 2, "mul": 1, "split_with_sizes": 1},
    ),
    "slice and select": (lambda x, w: x[None][:, :, 2:4].select(2, 1)[0], {"select": 1, "slice": 1}),
    "reductions": (
        lambda x, w: (x[None].mean(-1, keepdim=True) + x[None].sum(-1)[:, :, None])[0],
        {"add": 1, "mean": 1, "sum": 1, "unsqueeze": 1},
    ),
    "softmax": (lambda x, w: torch.softmax(x[None], -1)[0], {"softmax": 1}),
    "topk": (lambda x, w: x[None].topk(2, dim=-1)[0][0], {"getitem": 1, "topk": 1}),
    "gather": (
        lambda x, w: x[None].gather(2, x[None].topk(2, dim=-1)[1])[0],
        {"gather": 1, "getitem": 1, "topk": 1},
    ),
    "embedding": (
        lambda x, w: torch.nn.functional.embedding((x[None, :, 0] > 0).long(), w)[0],
        {"embedding": 1, "gt": 1, "select": 1, "to_copy": 1},
    ),
    "index": (
        lambda x, w: w[(x[None, :, 0] > 0).long()][0],
        {"gt": 1, "index": 1, "select": 1, "to_copy": 1},
    ),
    "squeeze": (lambda x, w: x[None, :, :, None].squeeze(3).squeeze(0) * 2, {"mul": 1, "squeeze": 1, "unsqueeze": 1}),
}


@pytest.mark.parametrize("name", RULES)
def test_every_kind_of_op_loses_the_dimension(name: str) -> None:
    function, counts = RULES[name]
    model = tidied(function, X, W)
    passes = [DropBatchDim(), EliminateCommon()]
    check_pass(passes, model, X, W, dynamic=DYNAMIC, counts=counts)


def test_an_operand_with_a_dimension_of_one_loses_it_too() -> None:
    model = tidied(lambda x, w: (x[None] * w[:1, None])[0], X, W)
    check_pass(
        DropBatchDim(), model, X, W, dynamic=DYNAMIC, counts={"mul": 1, "slice": 1, "squeeze": 1, "unsqueeze": 1}
    )


def test_an_op_without_a_rule_keeps_the_dimension_to_itself() -> None:
    def convolved(x: Tensor, w: Tensor) -> Tensor:
        return (torch.nn.functional.conv1d((x[None] * 2).transpose(1, 2), w[:, :, None]) * 2)[0]

    counts = {"conv1d": 1, "mul": 2, "permute": 1, "squeeze": 1, "unsqueeze": 2}
    check_pass(DropBatchDim(), tidied(convolved, X, W), X, W, dynamic=DYNAMIC, counts=counts)


def test_a_wrong_rule_stops_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(call: drop_batch_dim_rules.Call) -> drop_batch_dim_rules.Dropped:
        x = call.unit("self")
        return drop_batch_dim_rules.Dropped(call.site.call(torch.ops.aten.neg.default, x.source), x.dim)

    monkeypatch.setitem(drop_batch_dim_rules._RULES, torch.ops.aten.relu.default, wrong)
    model = tidied(lambda x, w: torch.relu(x[None])[0], X, W)
    with pytest.raises(BuildFailed, match="drop_batch_dim at relu"):
        DropBatchDim().run(model, Rewriter(model))


def test_nothing_is_done_once_enough_rewrites_were_made() -> None:
    model = tidied(lambda x, w: torch.relu(x[None])[0], X, W)
    assert DropBatchDim().run(model, Rewriter(model, stop_after=0)) == 0


def step(model: Model, length: int) -> tuple[Tensor, ...]:
    """The inputs of one step that holds a whole sequence of `length` tokens."""
    given = {
        "tokens": tokens(9)[0, :length],
        "positions": torch.arange(length),
        "slots": torch.arange(length) + 16,
        "starts": torch.tensor([0, length]),
        "lengths": torch.tensor([length]),
        "blocks": torch.tensor([[1]]),
        "rows": torch.arange(length),
    }
    caches = {
        node.name: torch.zeros(3, 16, *(int(size) for size in node.meta["val"].shape[2:]))
        for node in model.inputs()[7:]
    }
    return tuple((given | caches)[node.name] for node in model.inputs())


FAMILIES = ["llama", "gptj", "gemma2", "cohere", "gpt_oss", "phi"]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_value_of_a_packed_model_has_the_dimension(family: str) -> None:
    model = from_module(tiny(family))
    rewriter = Rewriter(model)
    before = (Canonicalize(), FoldConstants(), EliminateCommon(), RecognizeRope(), RecognizeAttention(), LiftMasks())
    for each in (*before, EliminateDead(), MakeIncremental(), EliminateDead()):
        each.run(model, rewriter)
    expected = {length: interpret(model, step(model, length)) for length in (1, 5)}
    assert DropBatchDim().run(model, rewriter) > 30
    assert DropBatchDim().run(model, rewriter) == 0
    for each in (Canonicalize(), EliminateCommon(), MergeViews(), EliminateDead()):
        each.run(model, rewriter)
    values = [node.meta["val"] for node in model.calls() if isinstance(node.meta["val"], Tensor)]
    in_three = [value for value in values if value.dim() == 3 and value.shape[0] == 1]
    tables = op_counts(model)["cos"] + op_counts(model)["sin"] if "cos" in op_counts(model) else 2
    assert len(in_three) <= 2 * tables
    for length, wanted in expected.items():
        for have, want in zip(interpret(model, step(model, length)), wanted, strict=True):
            assert_close(have, want)
