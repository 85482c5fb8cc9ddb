"""What a model's own code makes of the number of tokens: branches on it, and tables that end somewhere."""

from collections.abc import Callable

import pytest
import torch
from properties.plain_models import PlainModel, Recipe
from torch import Tensor, nn

import llmc
from llmc.compiled_model import CompiledModel
from llmc.errors import BadOption, BadRequest, UnsupportedModel
from llmc.runtime.sample import SamplingParams
from llmc.zoo.checks import check, require
from llmc.zoo.randomise import randomise

RECIPE = Recipe(layers=1, positions="none")
ROWS = 24
"""Rows of the tables: sequences of the checks have 19 tokens at most."""


class Extended(nn.Module):
    """A plain block whose input is changed in a way that depends on the number of tokens."""

    def __init__(self, change: Callable[["Extended", Tensor], Tensor]) -> None:
        super().__init__()
        self.model = PlainModel(RECIPE)
        self.change = change
        self.learned = nn.Embedding(ROWS, RECIPE.hidden)
        self.scale = nn.Buffer(torch.ones(RECIPE.hidden))
        self.short = nn.Buffer(torch.linspace(0.5, 1, RECIPE.hidden))
        self.seen = nn.Buffer(torch.zeros(()))
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.change(self, self.model.embed(tokens))
        for block in self.model.blocks:
            x = block(x, None)
        return self.model.head(self.model.norm(x))


def positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])[None]


def branch_on_shape(module: Extended, x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] > 16 else x


def branch_on_twice_the_length(module: Extended, x: Tensor) -> Tensor:
    return x * 2 if 2 * x.shape[1] + 1 > 33 else x


def branch_on_positions(module: Extended, x: Tensor) -> Tensor:
    return x * 2 if positions(x).max() + 1 > 16 else x


def branch_on_the_last_position(module: Extended, x: Tensor) -> Tensor:
    return x * 2 if positions(x)[0, -1].item() >= 16 else x


def choose_by_positions(module: Extended, x: Tensor) -> Tensor:
    long = torch.linspace(1, 2, RECIPE.hidden)
    module.scale.copy_(torch.where(torch.max(positions(x)) + 1 > 16, long, module.short))
    return x * module.scale


def branch_without_effect(module: Extended, x: Tensor) -> Tensor:
    if positions(x).max() < 16:
        return x * 2
    return x * 2


def scale_by_length_when_long(module: Extended, x: Tensor) -> Tensor:
    length = torch.max(positions(x)) + 1
    return x * (length / 16) if length > 16 else x


def fail_when_long(module: Extended, x: Tensor) -> Tensor:
    assert x.shape[1] <= 16, "sequence too long"
    return x


def look_up(module: Extended, x: Tensor) -> Tensor:
    return x + module.learned(positions(x))


def look_up_from_the_fourth(module: Extended, x: Tensor) -> Tensor:
    return x + module.learned(positions(x) + 3)


def look_up_by_index(module: Extended, x: Tensor) -> Tensor:
    return x + module.learned.weight[positions(x)]


def cut(module: Extended, x: Tensor) -> Tensor:
    return x + module.learned.weight[: x.shape[1]]


def look_up_at_most_the_last(module: Extended, x: Tensor) -> Tensor:
    return x + module.learned(positions(x).clamp(max=ROWS - 1))


def count_calls(module: Extended, x: Tensor) -> Tensor:
    module.seen.add_(1)
    return x * module.seen


Change = Callable[[Extended, Tensor], Tensor]


def compiled(change: Change, context: int | None = None) -> tuple[Extended, CompiledModel]:
    module = Extended(change).eval()
    return module, llmc.compile(module, max_context=context, program="reference", prove=False)


BRANCHES = [
    branch_on_shape, branch_on_twice_the_length, branch_on_positions, branch_on_the_last_position, choose_by_positions,
]  # fmt: skip


@pytest.mark.parametrize("change", BRANCHES)
def test_a_branch_on_the_length_goes_the_way_of_the_context(change: Change) -> None:
    module, model = compiled(change, 64)
    lengths = model.report["lengths"]
    assert isinstance(lengths, dict)
    assert lengths["shortest"] == 17
    (condition,) = lengths["conditions"]
    assert "length" in condition
    assert "test_lengths.py:" in condition
    require(check(model.session.program, module, RECIPE.vocab, shortest=17), change.__name__)
    with pytest.raises(AssertionError):  # the check can tell the two apart
        short = [outcome for outcome in check(model.session.program, module, RECIPE.vocab) if not outcome.passed]
        assert not short


@pytest.mark.parametrize("change", [*BRANCHES, fail_when_long])
def test_a_model_that_names_no_context_serves_the_lengths_before_its_branch(
    change: Change,
) -> None:
    _, model = compiled(change)
    assert model.session.ranges.context == 16
    assert "shortest" not in model.report["lengths"]  # type: ignore[operator]
    with pytest.raises(BadRequest, match="context of 16"):
        model.session.generate([[5] * 17])


@pytest.mark.parametrize("change", BRANCHES)
def test_a_context_before_the_branch_is_served_as_the_model_does(
    change: Change,
) -> None:
    module, model = compiled(change, 16)
    assert model.report["lengths"] == {}
    tokens = torch.arange(4, 16)[None]
    assert torch.allclose(model(tokens), module(tokens), atol=1e-5)


def test_a_branch_without_effect_bounds_nothing() -> None:
    module, model = compiled(branch_without_effect, 64)
    assert model.report["lengths"] == {}
    require(check(model.session.program, module, RECIPE.vocab), "branch without effect")


@pytest.mark.parametrize("change", [scale_by_length_when_long, fail_when_long])
def test_a_context_that_no_cache_can_serve_is_refused_with_the_one_that_it_can(
    change: Change,
) -> None:
    with pytest.raises(UnsupportedModel, match="max context of 16"):
        compiled(change, 64)
    assert compiled(change, 16)[1].session.ranges.context == 16


@pytest.mark.parametrize(
    ("change", "rows"), [(look_up, 24), (look_up_from_the_fourth, 21), (look_up_by_index, 24), (cut, 24)]
)
def test_no_position_past_a_table_is_served(change: Change, rows: int) -> None:
    module, model = compiled(change)
    require(check(model.session.program, module, RECIPE.vocab), change.__name__)
    assert model.session.facts.max_positions == rows
    model.session.generate([[5] * (rows - 1)], SamplingParams(max_new_tokens=1))
    with pytest.raises(BadRequest, match=f"context of {rows}"):
        model.session.generate([[5] * (rows + 1)])
    with pytest.raises((BadOption, UnsupportedModel), match=f"(made for|max context of) {rows}"):
        compiled(change, rows + 1)


def test_a_table_whose_last_row_serves_all_further_positions_bounds_nothing() -> None:
    _, model = compiled(look_up_at_most_the_last)
    assert model.session.facts.max_positions is None


def test_a_token_without_a_row_is_refused() -> None:
    module = Extended(look_up).eval()
    module.model.embed = nn.Embedding(RECIPE.vocab - 1, RECIPE.hidden)
    with pytest.raises(UnsupportedModel, match=rf"a table of {RECIPE.vocab - 1} rows, .* {RECIPE.vocab} logits"):
        llmc.compile(module, program="reference", prove=False)


def test_what_is_kept_from_call_to_call_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="reads seen, which it changes"):
        compiled(count_calls)


def test_tracing_leaves_the_module_as_it_was() -> None:
    module = Extended(choose_by_positions).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    llmc.compile(module, max_context=64, program="reference", prove=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(type(tensor) in (torch.Tensor, nn.Buffer) for tensor in module.buffers())
