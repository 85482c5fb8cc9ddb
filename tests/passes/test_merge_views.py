"""Chains of views become one view."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llmc.ir.rewrite import Rewriter
from llmc.passes.canonicalize import Canonicalize
from llmc.passes.merge_views import MergeViews
from tests.support.check_pass import check_pass, trace

X = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))


def test_single_views_are_left_alone() -> None:
    model = trace(lambda x: (x * 2).reshape(-1, 2, 4).permute(1, 0, 2), X, dynamic={0: [1]})
    Canonicalize().run(model, Rewriter(model))
    check_pass(
        MergeViews(),
        model,
        X,
        changes=0,
        counts={"mul": 1, "permute": 1, "reshape": 1},
    )


CHAINS: list[tuple[Callable[[Tensor], Tensor], dict[str, int]]] = [
    (lambda x: x.reshape(-1, 8).reshape(-1, 2, 4), {"reshape": 1}),
    (lambda x: x.reshape(-1, 8).unsqueeze(0), {}),
    (lambda x: x.unsqueeze(1).squeeze(1), {}),
    (lambda x: x.squeeze(0).reshape(-1, 2, 4), {"reshape": 1}),
    (lambda x: x.transpose(1, 2).permute(2, 0, 1), {"permute": 1}),
    (lambda x: x.transpose(1, 2).transpose(1, 2), {}),
    (lambda x: x[:, None].expand(1, 3, -1, 8).expand(2, -1, -1, -1), {"expand": 1, "unsqueeze": 1}),
    (lambda x: x.unsqueeze(0).unsqueeze(0), {"unsqueeze": 2}),
]


@pytest.mark.parametrize(("function", "counts"), CHAINS)
def test_a_chain_becomes_one_view(function: Callable[[Tensor], Tensor], counts: dict[str, int]) -> None:
    check_pass(
        [Canonicalize(), MergeViews()], lambda x: function(x * 2), X, dynamic={0: [1]}, counts={"mul": 1} | counts
    )


class Folded(nn.Module):
    """A projection of rows, between reshapes."""

    def __init__(self, outer: tuple[int, ...], twice: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.outer = outer
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        rows = self.linear((x * 2).reshape(-1, 8))
        result = rows.reshape(self.outer)
        return result + rows.sum() if self.twice else result


def test_a_projection_loses_the_reshapes_around_it() -> None:
    check_pass([Canonicalize(), MergeViews()], Folded((1, -1, 4)), X, dynamic={0: [1]}, counts={"linear": 1, "mul": 1})


def test_a_projection_whose_last_dimension_is_reshaped_keeps_them() -> None:
    check_pass(
        [Canonicalize(), MergeViews()],
        Folded((1, -1, 2, 2)),
        X,
        dynamic={0: [1]},
        counts={"linear": 1, "mul": 1, "reshape": 2},
    )


def test_a_projection_that_is_read_elsewhere_keeps_them() -> None:
    check_pass(
        [Canonicalize(), MergeViews()],
        Folded((1, -1, 4), twice=True),
        X,
        dynamic={0: [1]},
        counts={"add": 1, "linear": 1, "mul": 1, "reshape": 2, "sum": 1},
    )
