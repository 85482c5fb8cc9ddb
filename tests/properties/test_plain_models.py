"""Any plain transformer block compiles, and computes the same however its tokens are fed."""

import torch
from hypothesis import given, note
from properties.examples import examples
from properties.plain_models import PlainModel, Recipe
from properties.strategies import recipes
from support.tolerances import relative_tolerance

import llmc
from llmc.runtime.program import Program
from llmc.zoo.checks import check, sequences
from llmc.zoo.oracle import is_causal, logits_of
from llmc.zoo.randomise import randomise
from llmc.zoo.steps import Driver, run_in_pieces

TOLERANCE = relative_tolerance(torch.float32)


def model(recipe: Recipe, seed: int = 0) -> PlainModel:
    """The model of a recipe with random weights."""
    torch.manual_seed(seed)
    module = PlainModel(recipe).eval()
    randomise(module, seed)
    return module


def assert_close(have: torch.Tensor, want: torch.Tensor) -> None:
    assert (have - want).abs().max().item() <= TOLERANCE * want.abs().max().item()


@examples
@given(recipes())
def test_a_plain_model_of_any_recipe_is_causal(recipe: Recipe) -> None:
    assert is_causal(model(recipe), sequences(recipe.vocab)[0])


@examples
@given(recipes())
def test_a_plain_model_compiles_to_the_same_numbers_however_its_tokens_are_fed(recipe: Recipe) -> None:
    module = model(recipe)
    program = llmc.compile(module).session.program
    outcomes = check(program, module, recipe.vocab)
    note(f"{outcomes}")
    assert [outcome.check for outcome in outcomes if not outcome.passed] == []
    assert_one_shot_equals_chunks(program, module)
    assert_order_does_not_matter(program, module)
    assert_neighbours_do_not_matter(program, module)


def assert_one_shot_equals_chunks(program: Program, module: PlainModel) -> None:
    tokens = sequences(module.recipe.vocab)[0]
    whole = run_in_pieces(program, tokens, [])
    for sizes in ([1, 1], [4, 4, 4], [7, 5]):
        assert_close(run_in_pieces(program, tokens, sizes), whole)


def assert_order_does_not_matter(program: Program, module: PlainModel) -> None:
    prompts = dict(zip("abc", sequences(module.recipe.vocab)[1:], strict=True))
    forwards = Driver(program).step(prompts)
    backwards = Driver(program).step(dict(reversed(prompts.items())))
    for name in prompts:
        assert_close(backwards[name], forwards[name])


def assert_neighbours_do_not_matter(program: Program, module: PlainModel) -> None:
    tokens = sequences(module.recipe.vocab)[2]
    for other in ([1], [2] * 9, tokens[::-1]):
        together = Driver(program).step({"neighbour": other, "own": tokens})["own"]
        assert_close(together, logits_of(module, tokens))
