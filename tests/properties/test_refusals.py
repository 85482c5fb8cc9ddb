"""What tells tokens apart other than by attention and position is refused by name, never compiled to other numbers."""

from collections.abc import Callable

import pytest
import torch
from properties.plain_models import PlainModel, Recipe
from torch import Tensor, nn
from torch.nn import functional as F

import llmc
from llmc.errors import UnsupportedModel
from llmc.zoo.checks import check, require
from llmc.zoo.randomise import randomise

RECIPE = Recipe(layers=1, positions="none")


class Extended(nn.Module):
    """A plain block with something added to its input."""

    def __init__(self, extra: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = PlainModel(RECIPE)
        self.extra = extra
        self.register_buffer("table", torch.randn(64, RECIPE.hidden))
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.model.embed(tokens)
        x = x + self.extra(x) if self.extra is not cut_table else x + self.table[: x.shape[1]]
        for block in self.model.blocks:
            x = block(x, None)
        return self.model.head(self.model.norm(x))


def cut_table(x: Tensor) -> Tensor:
    raise AssertionError("stands for a table cut to the length")


def count_ones(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1]).cumsum(0)[:, None] / 10


def positions(x: Tensor) -> Tensor:
    return (torch.arange(x.shape[1])[:, None] // 3 % 2).float()


def distance_from_end(x: Tensor) -> Tensor:
    return (x.shape[1] - torch.arange(x.shape[1]))[:, None] / 10


def divide_by_length(x: Tensor) -> Tensor:
    return x / x.shape[1]


def fill_with_length(x: Tensor) -> Tensor:
    return torch.full_like(x, 0.1) * x.shape[1]


def mean_of_tokens(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)


def running_sum(x: Tensor) -> Tensor:
    return x.cumsum(1)


def previous_token(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, 0))[:, :-1]


def convolve(x: Tensor) -> Tensor:
    kernel = torch.ones(RECIPE.hidden, 1, 3) / 3
    return F.conv1d(F.pad(x.transpose(1, 2), (2, 0)), kernel, groups=RECIPE.hidden).transpose(1, 2)


def reverse(x: Tensor) -> Tensor:
    return x.flip(1)


def normalise_over_tokens(x: Tensor) -> Tensor:
    return x.softmax(1)


@pytest.mark.parametrize("extra", [cut_table, positions, count_ones])
def test_functions_of_the_position_compile(extra: Callable[[Tensor], Tensor]) -> None:
    module = Extended(extra).eval()
    require(check(llmc.compile(module).session.program, module, RECIPE.vocab), extra.__name__)


@pytest.mark.parametrize(
    "extra",
    [
        distance_from_end,
        divide_by_length,
        fill_with_length,
        mean_of_tokens,
        running_sum,
        previous_token,
        convolve,
        reverse,
        normalise_over_tokens,
    ],
)
def test_other_mixing_of_tokens_is_refused_by_op_and_source_line(extra: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedModel, match=r"(aten\.\w+|\w+) .*test_refusals\.py:\d+"):
        llmc.compile(Extended(extra).eval(), prove=False)
