"""One spelling for each thing: what each spelling becomes, and what is left alone."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmc.errors import BuildFailed
from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes import canonicalize, canonicalize_views
from llmc.passes.canonicalize import Canonicalize
from llmc.passes.canonicalize_site import Site
from tests.support.check_pass import check_pass, op_counts, trace
from tests.support.tiny_models import tiny_model

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def test_canonical_calls_are_left_alone() -> None:
    check_pass(
        Canonicalize(),
        lambda x, y: torch.rsqrt((x * x).sum(1, True) + 1e-5) * y / 3.0,
        X,
        Y,
        changes=0,
        counts={"add": 1, "div": 1, "mul": 2, "rsqrt": 1, "sum": 1},
    )


ARITHMETIC: list[tuple[Callable[..., Tensor], dict[str, int]]] = [
    (lambda x, y: x.pow(2) + y.square(), {"add": 1, "mul": 2}),
    (lambda x, y: x.pow(1) + (y * y).pow(0.5), {"add": 1, "mul": 1, "sqrt": 1}),
    (lambda x, y: (x * x + 1).pow(-0.5) * y, {"add": 1, "mul": 2, "rsqrt": 1}),
    (lambda x, y: (x + 0) * 1 + (y - 0) / 1, {"add": 1}),
    (lambda x, y: 2 * x + 3.0 + y, {"add": 2, "mul": 1}),
    (lambda x, y: x / 8 + y / 3, {"add": 1, "div": 1, "mul": 1}),
    (lambda x, y: 1 - x + y, {"add": 1, "rsub": 1}),
    (lambda x, y: torch.add(x, y, alpha=2), {"add": 1, "mul": 1}),
    (lambda x, y: torch.sub(x, y, alpha=2), {"mul": 1, "sub": 1}),
    (lambda x, y: torch.logical_and(x > 0, y > 0), {"bitwise_and": 1, "gt": 2}),
    (lambda x, y: torch.logical_or(x > 0, torch.logical_not(y > 0)), {"bitwise_not": 1, "bitwise_or": 1, "gt": 2}),
    (lambda x, y: torch.full((), True) & (x > y), {"gt": 1}),
    (lambda x, y: torch.zeros_like(x) + y, {"add": 1, "full": 1}),
    (lambda x, y: x.index_put((x > y,), torch.zeros(())), {"full": 1, "gt": 1, "where": 1}),
    (
        lambda x, y: x.index_put((x[:, 0] > y[:, 0],), torch.full((), 2.0)),
        {"full": 1, "gt": 1, "select": 2, "unsqueeze": 1, "where": 1},
    ),
]


@pytest.mark.parametrize(("function", "counts"), ARITHMETIC)
def test_arithmetic_has_one_spelling(function: Callable[..., Tensor], counts: dict[str, int]) -> None:
    check_pass(Canonicalize(), function, X, Y, counts=counts)


VIEWS: list[tuple[Callable[[Tensor], Tensor], dict[str, int]]] = [
    (lambda x: x.view(3, 2, 4).flatten(1), {"reshape": 2}),
    (lambda x: x.reshape(3, 8).view(3, -1), {}),
    (lambda x: x.t().contiguous(), {"permute": 1}),
    (lambda x: x.transpose(0, 0).swapaxes(-1, 1).mT, {"permute": 1}),
    (lambda x: x.unsqueeze(-1).squeeze(-1), {"squeeze": 1, "unsqueeze": 1}),
    (lambda x: x.squeeze().squeeze(0), {}),
    (lambda x: x[:, :].expand(3, 8), {}),
    (lambda x: x[:, -3:], {"slice": 1}),
    (lambda x: x.narrow(1, 2, 3), {"slice": 1}),
    (lambda x: x[-1], {"select": 1}),
    (lambda x: x[:, [-3, -2]], {"slice": 1}),
    (lambda x: x[[1, 0]], {"index": 1}),
    (lambda x: x[:, None].expand(-1, 5, -1), {"expand": 1, "unsqueeze": 1}),
    (lambda x: x[:, None].repeat(1, 5, 1), {"expand": 1, "unsqueeze": 1}),
    (lambda x: x.chunk(2, -1)[1], {"getitem": 1, "split_with_sizes": 1}),
    (lambda x: x.split(5, 1)[1], {"getitem": 1, "split_with_sizes": 1}),
    (lambda x: torch.cat([x]), {}),
]


@pytest.mark.parametrize(("function", "counts"), VIEWS)
def test_views_have_one_spelling(function: Callable[[Tensor], Tensor], counts: dict[str, int]) -> None:
    check_pass(Canonicalize(), lambda x: function(x * 2), X, counts={"mul": 1} | counts)


def test_sizes_are_numbers_and_at_most_one_is_left_open() -> None:
    model = check_pass(
        Canonicalize(),
        lambda x: (x * 2).view(1, x.shape[1], -1, 4).transpose(1, 2),
        torch.randn(1, 5, 8),
        dynamic={0: [1]},
        counts={"mul": 1, "permute": 1, "reshape": 1},
    )
    reshape, permute = (list(model.calls())[place] for place in (1, 2))
    assert list(reshape.args[1]) == [1, -1, 2, 4]  # type: ignore[arg-type]
    assert list(permute.args[1]) == [0, 2, 1, 3]  # type: ignore[arg-type]


def test_each_symbolic_size_is_computed_once() -> None:
    check_pass(
        Canonicalize(),
        lambda x, y: torch.arange(x.shape[1]) + torch.arange((y + x).shape[1]),
        torch.randn(1, 5, 8),
        torch.randn(1, 5, 8),
        dynamic={0: [1], 1: [1]},
        counts={"add": 1, "arange": 2, "sym_size": 1},
    )


CASTS: list[tuple[Callable[[Tensor], Tensor], dict[str, int]]] = [
    (lambda x: x.float().to(torch.float32).type_as(x), {}),
    (lambda x: x.double().float(), {}),
    (lambda x: x.half().float(), {"to_copy": 2}),
    (lambda x: x.to(torch.float16), {"to_copy": 1}),
    (lambda x: F.dropout(x.clone().detach(), 0.1, training=False), {}),
    (lambda x: x.softmax(-1, dtype=torch.float64), {"softmax": 1, "to_copy": 1}),
    (lambda x: x.half().mean(-1, dtype=torch.float32), {"mean": 1, "to_copy": 2}),
]


@pytest.mark.parametrize(("function", "counts"), CASTS)
def test_casts_that_change_nothing_are_removed(function: Callable[[Tensor], Tensor], counts: dict[str, int]) -> None:
    check_pass(Canonicalize(), lambda x: function(x * 2), X, counts={"mul": 1} | counts)


def test_a_cast_through_a_type_that_holds_less_stays() -> None:
    check_pass(Canonicalize(), lambda i: i.float().long(), torch.arange(5), changes=0, counts={"to_copy": 2})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_without_eps_is_given_the_one_that_aten_takes(dtype: torch.dtype) -> None:
    x = (X * 1e-3).to(dtype)
    model = trace(lambda x: F.rms_norm(x, (8,)), x)
    expected = model.run(x)
    assert Canonicalize().run(model, Rewriter(model)) == 1
    assert next(model.calls()).args == (x_node(model), [8], None, 2.0**-23)
    assert torch.equal(model.run(x)[0], expected[0])


def x_node(model: Model) -> torch.fx.Node:
    """The one input."""
    (node,) = model.inputs()
    return node


class Projections(nn.Module):
    """The four ways to write a projection by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, 8)
        results = (
            torch.addmm(self.bias, rows, self.weight),
            rows @ self.weight,
            torch.mm(rows, self.weight.t().t()),
            F.linear(rows, self.weight.t(), self.bias),
        )
        return torch.stack(results)


def test_every_projection_is_a_linear() -> None:
    model = check_pass(Canonicalize(), Projections(), torch.randn(1, 5, 8), dynamic={0: [1]})
    counts = op_counts(model)
    assert counts["linear"] == 4
    assert not counts.keys() & {"addmm", "mm", "matmul"}


def test_products_of_activations_are_matmuls() -> None:
    x, y = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    check_pass(Canonicalize(), lambda x, y: torch.bmm(x, y), x, y, counts={"matmul": 1})
    check_pass(
        Canonicalize(),
        lambda x, y: torch.baddbmm(x[:, :, :1], x, y, beta=2.0, alpha=0.5),
        x,
        y,
        counts={"add": 1, "matmul": 1, "mul": 2, "slice": 1},
    )


def test_a_wrong_respelling_stops_the_build_and_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(site: Site) -> torch.fx.Node:
        return site.call(torch.ops.aten.mul.Tensor, site["self"], 2)

    monkeypatch.setitem(canonicalize.RESPELLINGS, torch.ops.aten.neg.default, twice)
    model = trace(lambda x: -x, X)
    with pytest.raises(BuildFailed, match=r"canonicalize at neg .*aten\.neg\.default respelled as aten\.mul\.Tensor"):
        Canonicalize().run(model, Rewriter(model))


def test_a_respelling_of_another_size_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(site: Site) -> torch.fx.Node:
        return site.call(torch.ops.aten.reshape.default, site["self"], [-1])

    monkeypatch.setitem(canonicalize.RESPELLINGS, torch.ops.aten.neg.default, flat)
    check_pass(Canonicalize(), lambda x: -x, X, changes=0, counts={"neg": 1})


def test_every_respelling_is_of_an_op_that_exists() -> None:
    assert all(isinstance(op, torch._ops.OpOverload) for op in canonicalize.RESPELLINGS)
    assert canonicalize_views.VIEWS.keys() <= canonicalize.RESPELLINGS.keys()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "bloom"])
def test_models_keep_only_canonical_views_products_and_casts(family: str) -> None:
    model = tiny_model(family)
    check_pass(Canonicalize(), model, torch.tensor([[3, 7, 9, 12, 5]]))
    gone = {"view", "transpose", "t", "clone", "addmm", "mm", "bmm", "baddbmm", "pow", "unsafe_view", "contiguous"}
    kept = {"pow"} if family in ("gpt2", "gptj", "bloom") else set()
    assert not op_counts(model).keys() & (gone - kept)
    assert op_counts(model)["sym_size"] == 1
