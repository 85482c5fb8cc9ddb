"""Computations on weights become weights, lazily; what would grow stays."""

import torch
from torch import Tensor, nn

from llmc.frontend.hf import from_module
from llmc.ir.rewrite import Rewriter
from llmc.ir.weights import Constant, Expr, Weight
from llmc.passes.canonicalize import Canonicalize
from llmc.passes.fold_constants import SMALL, FoldConstants
from tests.support.check_pass import check_pass, trace
from tests.support.tiny_models import tiny


class Unread(Weight):
    """A weight that must not be evaluated."""

    def __init__(self, weight: Weight) -> None:
        self.shape, self.dtype, self.name, self.digest = weight.shape, weight.dtype, weight.name, weight.name

    def inputs(self):
        return iter(())

    def compute(self, value):
        raise AssertionError(f"{self.name} was read")

    def describe(self) -> str:
        return self.name


class OfWeight(nn.Module):
    """Returns its input times a function of its weight."""

    def __init__(self, function, *sizes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*sizes, generator=torch.Generator().manual_seed(0)))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return x * self.function(self.weight)


def test_a_graph_without_constant_computations_is_left_alone() -> None:
    check_pass(FoldConstants(), OfWeight(lambda w: w, 8), torch.randn(3, 8), changes=0, counts={"mul": 1})


def test_a_chain_of_computations_on_a_weight_becomes_one_recipe() -> None:
    chain = OfWeight(lambda w: (w.t() + 1).half().float(), 4, 8)
    model = check_pass(FoldConstants(), chain, torch.randn(8, 4), changes=1, counts={"mul": 1})
    assert len(model.weights) == 1


def test_weights_are_not_read() -> None:
    model = trace(OfWeight(lambda w: w.t() + 1, 4, 8), torch.randn(8, 4))
    model.weights = {name: Unread(weight) for name, weight in model.weights.items()}
    assert FoldConstants().run(model, Rewriter(model)) == 1
    (recipe,) = model.weights.values()
    assert isinstance(recipe, Expr)
    assert recipe.describe() == "add(t(weight), 1)"


def test_constants_of_the_code_are_computed_at_once() -> None:
    model = check_pass(
        FoldConstants(), lambda x: x + torch.arange(8).float() * 2, torch.randn(3, 8), changes=1, counts={"add": 1}
    )
    (constant,) = model.weights.values()
    assert isinstance(constant, Constant)
    assert constant.tensor.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]


def test_constants_of_unknown_size_stay() -> None:
    check_pass(
        FoldConstants(),
        lambda x: x + torch.arange(x.shape[1]),
        torch.randn(3, 8),
        dynamic={0: [1]},
        changes=0,
    )


def test_expansions_and_fills_stay_in_the_graph() -> None:
    check_pass(
        FoldConstants(),
        OfWeight(lambda w: w.expand(3, 8) + torch.full((3, 8), 2.0), 8),
        torch.randn(3, 8),
        changes=0,
        counts={"add": 1, "expand": 1, "full": 1, "mul": 1},
    )


def test_what_would_grow_beyond_a_small_size_stays() -> None:
    rows = 3 * SMALL // 8 // 4
    wide = OfWeight(lambda w: w.double(), rows, 2)
    model = check_pass(FoldConstants(), wide, torch.randn(1, 1), changes=0)
    assert len(model.weights) == 1


def test_parts_of_a_split_weight_are_recipes() -> None:
    model = check_pass(
        FoldConstants(),
        OfWeight(lambda w: torch.split(w, [3, 5])[1], 8),
        torch.randn(2, 5),
        changes=1,
        counts={"mul": 1},
    )
    (recipe,) = model.weights.values()
    assert recipe.shape == (5,)


def test_the_projections_of_gpt2_become_transposed_recipes_of_the_checkpoint() -> None:
    model = from_module(tiny("gpt2"))
    check_pass([Canonicalize(), FoldConstants()], model, torch.tensor([[3, 5, 7, 9]]))
    described = [weight.describe() for weight in model.weights.values() if isinstance(weight, Expr)]
    assert len(described) == 2 * 4
    assert described[0] == "permute(c_attn.weight, (1, 0))"
