"""What is computed twice is computed once."""

import torch
from torch import Tensor, nn

from llmc.ir.rewrite import Rewriter
from llmc.passes.eliminate_common import EliminateCommon
from tests.support.check_pass import check_pass, op_counts, trace


def test_different_calls_are_left_alone() -> None:
    check_pass(
        EliminateCommon(),
        lambda x: x * 1.0 + x * 1 + x * True + x.sum(0, True) + x.sum(1, True),
        torch.randn(3, 3),
        changes=0,
        counts={"add": 4, "mul": 3, "sum": 2},
    )


def test_equal_calls_are_made_once_through_any_depth() -> None:
    check_pass(
        EliminateCommon(),
        lambda x, y: torch.cat([(x * y).cos(), (x * y).cos()], 1) + (x * y).cos().repeat(1, 2),
        torch.randn(3, 8),
        torch.randn(3, 8),
        changes=4,
        counts={"add": 1, "cat": 1, "cos": 1, "mul": 1, "repeat": 1},
    )


def test_random_numbers_are_drawn_each_time() -> None:
    model = trace(lambda x: torch.rand_like(x) + torch.rand_like(x), torch.randn(3))
    assert EliminateCommon().run(model, Rewriter(model)) == 0
    assert sum(count for name, count in op_counts(model).items() if "rand" in name) == 2


class Tied(nn.Module):
    """Two parameters of equal content, and one of other content."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(8))
        self.b = nn.Parameter(torch.ones(8))
        self.c = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.a + x * self.b + self.c


def test_weights_of_equal_recipes_are_one() -> None:
    model = check_pass(EliminateCommon(), Tied(), torch.randn(3, 8), changes=2, counts={"add": 2, "mul": 1})
    assert list(model.weights) == ["a", "c"]
