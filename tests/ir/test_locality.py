"""The proof that packed tokens stay apart: what is allowed, and every way of mixing them refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.check_pass import trace
from torch import Tensor, nn
from torch.nn import functional

from llmc.errors import UnsupportedModel
from llmc.ir.labels import SHARED, Mixes, join, within
from llmc.ir.locality import token_labels
from llmc.ir.model import Model, Origin

WIDTH, LENGTH = 6, 5


class Step(nn.Module):
    """A packed step: embeds its tokens and lets a function act on them, [T, 6]."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.table = nn.Parameter(torch.randn(32, WIDTH))
        self.register_buffer("order", torch.arange(WIDTH).flip(0))
        self.function = function

    def forward(self, tokens: Tensor, positions: Tensor) -> Any:
        return self.function(self, self.embed(tokens), positions)


def step(function: Callable[..., Any]) -> Model:
    examples = torch.arange(7) % 8, torch.arange(7)
    model = trace(Step(function), *examples, dynamic={0: [0], 1: [0]})
    for node in model.calls():
        node.meta["origin"] = Origin("layers.3.mixer", "modeling_x.py:12")
    return model


def labels(model: Model, tokens: int = LENGTH) -> list[Tensor | None]:
    found = token_labels(model, tokens)
    return [found[node] for node in model.graph.output_node().args[0]]


ALLOWED: dict[str, Callable[..., Any]] = {
    "pointwise ops": lambda m, x, p: torch.tanh(x) * x + 1,
    "pointwise ops without the tag": lambda m, x, p: functional.hardswish(x) + functional.logsigmoid(x) + (x // 0.5),
    "members of a table": lambda m, x, p: x * torch.isin(p, m.order)[:, None],
    "orders of features": lambda m, x, p: (
        x.cummax(-1).values + x.logcumsumexp(-1) + x.kthvalue(2, -1).values[:, None] + x.median(-1, keepdim=True).values
    ),
    "casts and fills": lambda m, x, p: x.double().float() + torch.zeros_like(x),
    "weights": lambda m, x, p: x * m.weight[0] + m.table[3],
    "positions": lambda m, x, p: x + p[:, None],
    "linear": lambda m, x, p: functional.linear(x, m.weight, m.weight[0]),
    "products with weights": lambda m, x, p: torch.matmul(x, m.weight) + torch.mm(x, m.weight),
    "addmm": lambda m, x, p: torch.addmm(m.weight[0], x, m.weight),
    "softmax over features": lambda m, x, p: x.softmax(-1) + x.log_softmax(1),
    "means over features": lambda m, x, p: x - x.mean(-1, keepdim=True) / x.std(-1, keepdim=True),
    "norms of features": lambda m, x, p: functional.layer_norm(x, [6]) + x / x.norm(dim=-1, keepdim=True),
    "sums over heads": lambda m, x, p: x.view(-1, 2, 3).sum(1).repeat(1, 2),
    "largest features": lambda m, x, p: x * x.topk(2, dim=-1).values.sum(-1, keepdim=True) + x.amax(-1)[:, None],
    "sorted features": lambda m, x, p: x.sort(dim=-1).values + x.argsort(-1),
    "cumulated features": lambda m, x, p: x.cumsum(-1) + x.flip(-1) + x.roll(2, 1),
    "views": lambda m, x, p: x.view(-1, 2, 3).permute(0, 2, 1).transpose(0, 1).transpose(1, 0).reshape(-1, 6),
    "splits and joins": lambda m, x, p: torch.cat([part * 2 for part in x.split(2, -1)][::-1], -1),
    "chunks and stacks": lambda m, x, p: torch.stack(x.chunk(3, -1), 1).flatten(1) + torch.stack(x.unbind(1), 1),
    "slices of features": lambda m, x, p: torch.cat([-x[:, 3:], x[:, :3]], -1),
    "padded features": lambda m, x, p: x * functional.pad(x[:, 1:-1], (1, 1)),
    "tokens moved and moved back": lambda m, x, p: x.flip(0).flip(0),
    "embedding of positions": lambda m, x, p: x + functional.embedding(p, m.table),
    "rows of a table": lambda m, x, p: x + m.table[p],
    "columns of a table": lambda m, x, p: x + m.table.t()[:, p].t(),
    "features in another order": lambda m, x, p: x[:, m.order] + x.index_select(1, m.order),
    "gathered features": lambda m, x, p: x.gather(-1, x.argsort(-1)),
    "scattered features": lambda m, x, p: torch.zeros_like(x).scatter(1, x.topk(2).indices, 1.0) * x,
    "one hot": lambda m, x, p: x + functional.one_hot(x.argmax(-1), 6),
    "complex rotation": lambda m, x, p: torch.view_as_real(torch.view_as_complex(x.view(-1, 3, 2)) * 1j).reshape(-1, 6),
    "a constant for each token": lambda m, x, p: x * x.new_ones(x.shape[0], 1) + torch.zeros(x.shape[0], 6),
    "masks of features": lambda m, x, p: x.masked_fill(x < 0, 0.0) + torch.where(x > 0, x, m.weight[0]),
    "the dialect's ops": lambda m, x, p: torch.ops.llmc.rms_norm(
        torch.ops.llmc.gated_act(torch.ops.llmc.rope(x, x[:, :4], x[:, 2:], False), x, "silu"),
        m.weight[0],
        1e-5,
        0.0,
        True,
    ),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_acts_on_each_token_alone_keeps_them_apart(name: str) -> None:
    model = step(ALLOWED[name])
    for tokens in (1, 2, LENGTH):
        (label,) = labels(model, tokens)
        own = torch.arange(tokens)[:, None].expand(tokens, WIDTH)
        assert label is not None
        assert torch.equal(label, own), label


NAMES_THE_PLACE = r" at layers\.3\.mixer at modeling_x\.py:12 mixes tokens: "

MIXING: dict[str, tuple[Callable[..., Any], str]] = {
    "softmax over tokens": (lambda m, x, p: x.softmax(0), "aten.softmax.int: it reduces over tokens 0 and 4"),
    "cumsum over tokens": (lambda m, x, p: x.cumsum(0), "aten.cumsum: it reduces over tokens 0 and 4"),
    "mean over tokens": (lambda m, x, p: x - x.mean(0), "aten.mean.dim: it reduces over tokens 0 and 4"),
    "mean over all": (lambda m, x, p: x - x.mean(), "aten.mean: it reduces over tokens 0 and 4"),
    "largest token": (lambda m, x, p: x - x.max(0).values, "aten.max.dim: it reduces over tokens 0 and 4"),
    "norm over tokens": (
        lambda m, x, p: x / x.norm(dim=0),
        r"aten.(linalg_vector_)?norm.*: it reduces over tokens 0 and 4",
    ),
    "variance over all": (lambda m, x, p: x / x.var(), "aten.var.correction: it reduces over tokens 0 and 4"),
    "layer norm over all": (
        lambda m, x, p: functional.layer_norm(x.t().reshape(-1, 6), [6]),
        "aten.layer_norm: it reduces over tokens 0 and",
    ),
    "token shift": (lambda m, x, p: x[1:] + x[:-1], "aten.add.Tensor: it combines tokens 1 and 0"),
    "token shift by padding": (
        lambda m, x, p: x + functional.pad(x, (0, 0, 1, 0))[:-1],
        "aten.add.Tensor: it combines tokens 1 and 0",
    ),
    "sort of tokens": (lambda m, x, p: x.sort(dim=0).values, "aten.sort: it reduces over tokens 0 and 4"),
    "median token": (lambda m, x, p: x - x.median(0).values, "aten.median.dim: it reduces over tokens 0 and 4"),
    "largest token so far": (lambda m, x, p: x.cummax(0).values, "aten.cummax: it reduces over tokens 0 and 4"),
    "values among those of tokens": (
        lambda m, x, p: x * torch.isin(p * 0, p)[:, None],
        "aten.isin.Tensor_Tensor: it looks for values among those of tokens",
    ),
    "flip of tokens": (lambda m, x, p: x + x.flip(0), "aten.add.Tensor: it combines tokens 0 and 4"),
    "roll of tokens": (lambda m, x, p: x * x.roll(1, 0), "aten.mul.Tensor: it combines tokens 0 and 4"),
    "roll of all": (lambda m, x, p: x * x.roll(1), "aten.mul.Tensor: it combines tokens 0 and 4"),
    "tokens by tokens": (lambda m, x, p: x @ x.t(), "aten.matmul: it combines tokens 0 and 1"),
    "tokens summed by a product": (lambda m, x, p: x.t() @ x, "aten.matmul: it reduces over tokens 0 and 4"),
    "a weight of tokens": (
        lambda m, x, p: functional.linear(x, x[:, :1] * m.weight[0]),
        "aten.linear: its weight depends on tokens",
    ),
    "a table of tokens": (lambda m, x, p: functional.embedding(p, x), "aten.embedding: its table depends on tokens"),
    "tokens by position": (lambda m, x, p: x[p], "aten.index.Tensor: it gathers from values of several tokens"),
    "tokens by arange": (
        lambda m, x, p: x[torch.arange(x.shape[0])],
        "aten.arange: it computes with the number of tokens",
    ),
    "gathered tokens": (lambda m, x, p: x.gather(0, x.argsort(-1)), "aten.gather: it reduces over tokens 0 and 4"),
    "scattered tokens": (
        lambda m, x, p: x.scatter(0, x.argsort(-1), 1.0),
        "aten.scatter.value: it reduces over tokens 0 and 4",
    ),
    "complex pairs of tokens": (
        lambda m, x, p: torch.view_as_complex(x.t()[:, :2].contiguous()).t(),
        "aten.view_as_complex: it reduces over tokens 0 and 1",
    ),
    "convolution": (
        lambda m, x, p: functional.conv1d(x.t()[None], m.weight[:, :, None].repeat(1, 1, 3), padding=1)[0].t(),
        "aten.conv.*: its effect on tokens is not known",
    ),
    "an op of no rule": (lambda m, x, p: torch.cdist(x, x), "aten.*cdist.*: its effect on tokens is not known"),
    "a feature by vector": (
        lambda m, x, p: torch.matmul(x, m.weight[0]),
        "aten.*(mv|matmul).*: .*(not known|not followed)",
    ),
    "the number of tokens": (lambda m, x, p: x / x.shape[0], "aten.div.Tensor: it computes with the number of tokens"),
    "the number of tokens in a fill": (
        lambda m, x, p: x * torch.full((x.shape[0], 1), x.shape[0]),
        "aten.full: it computes with the number of tokens",
    ),
    "arange": (
        lambda m, x, p: x + torch.arange(x.shape[0])[:, None],
        "aten.arange: it computes with the number of tokens",
    ),
    "the first rows of a table": (lambda m, x, p: x + m.table[: x.shape[0]], "aten.slice.Tensor: it cuts as many rows"),
    "cumulated ones": (
        lambda m, x, p: x + torch.ones(x.shape[0]).cumsum(0)[:, None],
        "aten.cumsum: it reduces over tokens 0 and 4",
    ),
    "the sum of ones": (lambda m, x, p: x / torch.ones(x.shape[0]).sum(), "aten.sum.*: it reduces over tokens 0 and 4"),
    "padded ones": (
        lambda m, x, p: x * functional.pad(torch.ones(x.shape[0]), (1, 0))[:-1, None],
        "aten.mul.Tensor: it combines tokens 1 and 0",
    ),
    "a triangle": (
        lambda m, x, p: x @ torch.ones(6, x.shape[0]).tril(),
        "aten.tril: its effect on tokens is not known",
    ),
    "pairs of tokens": (
        lambda m, x, p: x * torch.zeros(x.shape[0], x.shape[0]).sum(1, keepdim=True),
        "aten.(full|zeros).*: it has an element for each two tokens of the step",
    ),
    "ones in front": (
        lambda m, x, p: x + torch.cat([torch.zeros(1), torch.ones(x.shape[0])])[:-1, None],
        "aten.add.Tensor: it combines tokens 1 and 0",
    ),
    "rope by another token": (
        lambda m, x, p: torch.ops.llmc.rope(x, x[:, :4].flip(0), x[:, :4], False),
        "llmc.rope: it combines tokens 0 and 4",
    ),
    "norm weights of another token": (
        lambda m, x, p: (
            torch.ops.llmc.rms_norm(x, m.weight[0], 1e-5, 0.0, False)
            + torch.ops.llmc.rms_norm(x.t(), None, 1e-5, 0.0, False).t()
        ),
        "llmc.rms_norm: it reduces over tokens 0 and 4",
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_tokens_is_refused_by_op_module_and_source_line(name: str) -> None:
    function, message = MIXING[name]
    op, _, reason = message.partition(": ")
    with pytest.raises(UnsupportedModel, match=f"^{op}{NAMES_THE_PLACE}{reason}"):
        labels(step(function))


def test_the_rows_asked_for_are_taken_for_tokens() -> None:
    class Rows(nn.Module):
        def forward(self, tokens: Tensor, rows: Tensor) -> Tensor:
            return tokens.index_select(0, rows)

    model = trace(Rows(), torch.arange(7), torch.arange(3), dynamic={0: [0], 1: [0]})
    found = token_labels(model, 5, 4)
    (result,) = model.graph.output_node().args[0]
    assert found[result].tolist() == [0, 1, 2, 3]


def test_values_of_no_token_have_no_labels() -> None:
    model = step(lambda m, x, p: (m.weight.t() @ m.weight, m.table[:3].cumsum(0), torch.arange(3)))
    assert labels(model) == [None] * 3


def test_joined_labels_yield_to_a_token() -> None:
    own = torch.arange(3)[:, None]
    shared = torch.full((1, 2), SHARED)
    assert join(own, shared, own).tolist() == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(Mixes, match="it combines tokens 1 and 0"):
        join(torch.tensor([0, 1]), torch.tensor([0, 0]))


def test_a_reduction_within_one_token_has_its_label() -> None:
    label = torch.tensor([[0, SHARED, 0], [SHARED, SHARED, SHARED], [2, 2, 2]])
    assert within(label, [1]).tolist() == [[0], [SHARED], [2]]
    assert within(label, []) is label
    with pytest.raises(Mixes, match="it reduces over tokens 0 and 2"):
        within(label, [0])
