"""The weight of a norm goes into the projections after it, where that rounds no worse and stores nothing twice."""

import pytest
import torch
from torch import Tensor, nn

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes.fold_constants import FoldConstants
from llmc.passes.fold_norm_weights import FoldNormWeights
from llmc.passes.recognize_norms import RecognizeNorms
from tests.support.check_pass import check_pass, trace
from tests.support.tidied import TIDY
from tests.support.tiny_models import tiny_model, tokens


class Block(nn.Module):
    """A norm, and two projections that read it; `use` adds a reader, `in_float` applies the weight in fp32."""

    def __init__(self, dtype: torch.dtype = torch.float32, use: str = "", in_float: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.norm = nn.Parameter(torch.randn(16, generator=generator).to(dtype))
        self.first = nn.Linear(16, 8, dtype=dtype)
        self.second = nn.Linear(16, 4, bias=False, dtype=dtype)
        self.use = use
        self.in_float = in_float

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        unit = wide * torch.rsqrt((wide * wide).mean(-1, True) + 1e-5)
        normed = (self.norm * unit).to(x.dtype) if self.in_float else self.norm * unit.to(x.dtype)
        result = torch.cat((self.first(normed), self.second(normed)), dim=-1)
        if self.use == "residual":
            return result.sum() + normed
        if self.use == "tied":
            return result.sum() + self.second.weight
        return result


def normed(module: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Model, Tensor]:
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    model = trace(module, x, dynamic={0: [1]})
    for step in (*TIDY, RecognizeNorms()):
        step.run(model, Rewriter(model))
    return model, x


def is_weighted(model: Model) -> list[bool]:
    return [node.args[1] is not None for node in model.calls(torch.ops.llmc.rms_norm.default)]


def test_a_norm_without_weight_is_left_alone() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt((x * x).mean(-1, True) + 1e-5)

    model, x = normed(Plain())
    check_pass(FoldNormWeights(), model, x, changes=0, refused=[])


def test_the_projections_take_the_weight() -> None:
    model, x = normed(Block())
    passes = [FoldNormWeights(), FoldConstants()]
    model = check_pass(passes, model, x, changes=3, counts={"cat": 1, "linear": 2, "rms_norm": 1}, refused=[])
    assert is_weighted(model) == [False]
    assert sorted(weight.shape for weight in model.weights.values()) == [(4, 16), (8,), (8, 16)]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Block(use="residual"), "add_1 also reads it, and is no linear"),
        (Block(use="tied"), "second_weight is also used elsewhere, and would have to be stored twice"),
    ],
)
def test_what_would_need_the_weight_elsewhere_is_refused(block: Block, reason: str) -> None:
    model, x = normed(block)
    check_pass(FoldNormWeights(), model, x, changes=0, refused=[reason])


def test_low_precision_is_refused_unless_asked_for() -> None:
    model, x = normed(Block(torch.bfloat16), torch.bfloat16)
    reason = "it would round the stored weights to bfloat16 once more"
    check_pass(FoldNormWeights(), model, x, changes=0, refused=[reason])
    model = check_pass(FoldNormWeights(low_precision=True), model, x, changes=1, refused=[])
    assert is_weighted(model) == [False]


def test_a_weight_that_the_model_applies_in_fp32_stays_in_low_precision() -> None:
    model, x = normed(Block(torch.bfloat16, in_float=True), torch.bfloat16)
    reason = "the model applies its weight before rounding, so that folding would round once more"
    check_pass(FoldNormWeights(low_precision=True), model, x, changes=0, refused=[reason])


def test_llama_keeps_only_norms_without_weight() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    for step in (*TIDY, RecognizeNorms()):
        step.run(model, Rewriter(model))
    model = check_pass([FoldNormWeights(), FoldConstants()], model, tokens(), changes=5 + 2 * 5 + 1, refused=[])
    assert is_weighted(model) == [False] * 5


def test_a_tied_head_keeps_the_last_norm() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    for step in (*TIDY, RecognizeNorms()):
        step.run(model, Rewriter(model))
    model = check_pass(FoldNormWeights(), model, tokens(), changes=4)
    assert is_weighted(model) == [False] * 4 + [True]
