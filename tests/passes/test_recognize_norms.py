"""Norms in every spelling become the two ops of the dialect; what only looks like a norm is refused with a reason."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes.recognize_norms import RecognizeNorms
from tests.support.check_pass import check_pass, trace
from tests.support.tidied import TIDY
from tests.support.tiny_models import tiny_model, tokens


class Norm(nn.Module):
    """A norm over its own weight; `sizes` is the weight's shape."""

    def __init__(self, function: Callable[..., Tensor], dtype: torch.dtype, *sizes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(*(sizes or (16,)), generator=generator).to(dtype))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def llama(x: Tensor, w: Tensor) -> Tensor:
    return w * unit(x.float()).to(x.dtype)


def gemma(x: Tensor, w: Tensor) -> Tensor:
    return (unit(x.float()) * (1.0 + w.float())).type_as(x)


def olmo2(x: Tensor, w: Tensor) -> Tensor:
    return (w * unit(x.float())).to(x.dtype)


def divided(x: Tensor, w: Tensor) -> Tensor:
    return w * (x.float() / torch.sqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def inverted(x: Tensor, w: Tensor) -> Tensor:
    return w * (x.float() * (1 / torch.sqrt((x.float() * x.float()).mean(-1, keepdim=True) + 1e-5))).to(x.dtype)


def promoted(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def rounded_root(x: Tensor, w: Tensor) -> Tensor:
    return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5).to(x.dtype) + w


def unweighted(x: Tensor, w: Tensor) -> Tensor:
    return unit(x.float()).to(x.dtype) + w


def fused(x: Tensor, w: Tensor) -> Tensor:
    return F.rms_norm(x, (16,), w, 1e-5)


def cohere(x: Tensor, w: Tensor) -> Tensor:
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    variance = (wide - wide.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True)
    return (w.float() * (centred * torch.rsqrt(variance + 1e-5))).to(x.dtype)


def layer(x: Tensor, w: Tensor) -> Tensor:
    return F.layer_norm(x, (16,), w, w * 0.5, 1e-5)


def layer_without_weight(x: Tensor, w: Tensor) -> Tensor:
    return F.layer_norm(x.float(), (16,), None, None, 1e-5).to(x.dtype) + w


def tidied(module: nn.Module, *examples: Tensor) -> Model:
    model = trace(module, *examples, dynamic={0: [1]})
    for step in TIDY:
        step.run(model, Rewriter(model))
    return model


def recognised(function: Callable[..., Tensor], dtype: torch.dtype, *sizes: int) -> tuple[Model, Tensor]:
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    return tidied(Norm(function, dtype, *sizes), x), x


def arguments(model: Model, name: str) -> list[tuple[object, ...]]:
    """Of each norm, its arguments after the tensors."""
    first = {"rms_norm": 2, "layer_norm": 3}[name]
    return [tuple(node.args[first:]) for node in model.calls(getattr(torch.ops.llmc, name).default)]


def test_a_scaled_vector_is_no_norm() -> None:
    model, x = recognised(lambda x, w: w * x * torch.rsqrt(x.pow(2) + 1e-5), torch.float32)
    check_pass(RecognizeNorms(), model, x, changes=0, refused=[])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "function", [llama, gemma, olmo2, divided, inverted, promoted, rounded_root, unweighted, fused]
)
def test_every_rms_norm_becomes_one_op(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    model, x = recognised(function, dtype)
    rest = {"add": 1} if function in (unweighted, rounded_root) else {}
    model = check_pass(RecognizeNorms(), model, x, changes=1, counts={"rms_norm": 1} | rest, refused=[])
    late = dtype != torch.float32 and function in (llama, divided, inverted, promoted)
    assert arguments(model, "rms_norm") == [(1e-5, 0.0, not late)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [cohere, layer, layer_without_weight])
def test_every_layer_norm_becomes_one_op(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    model, x = recognised(function, dtype)
    model = check_pass(RecognizeNorms(), model, x, changes=1, refused=[])
    assert arguments(model, "layer_norm") == [(1e-5, True)]


def test_norms_of_heads_keep_a_weight_for_each_head() -> None:
    def heads(x: Tensor, w: Tensor) -> Tensor:
        return llama(x.unflatten(-1, (2, 8)), w)

    model, x = recognised(heads, torch.bfloat16, 2, 8)
    check_pass(RecognizeNorms(), model, x, changes=1, counts={"reshape": 1, "rms_norm": 1})


def test_a_vector_divided_by_its_length_is_a_norm_times_a_constant() -> None:
    model, x = recognised(lambda x, w: w * (x * torch.rsqrt((x * x).sum(-1, True) + 1e-6)), torch.float32)
    model = check_pass(RecognizeNorms(), model, x, changes=1, counts={"mul": 2, "rms_norm": 1})
    assert arguments(model, "rms_norm") == [(1e-6 / 16, 0.0, True)]


def test_a_cast_that_others_read_is_kept_for_them() -> None:
    model, x = recognised(lambda x, w: llama(x, w).float() + x.float(), torch.bfloat16)
    check_pass(RecognizeNorms(), model, x, changes=1, counts={"add": 1, "rms_norm": 1, "to_copy": 2})


def test_a_norm_whose_mean_is_read_elsewhere_is_refused() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return w * (x * torch.rsqrt(mean + 1e-5)) + mean

    model, x = recognised(function, torch.float32)
    check_pass(RecognizeNorms(), model, x, changes=0, refused=["mean is also used elsewhere"] * 2)


def test_a_result_of_another_dtype_is_refused() -> None:
    model, x = recognised(lambda x, w: w.float() * unit(x.float()).to(x.dtype), torch.bfloat16)
    model = check_pass(RecognizeNorms(), model, x, refused=["the result is float32, its input bfloat16"])
    assert arguments(model, "rms_norm") == [(1e-5, 0.0, True)]


def test_a_weight_that_enlarges_its_input_is_refused() -> None:
    module = Norm(llama, torch.float32, 3, 1, 16)
    reason = "the weight [3, 1, 16] enlarges its input [1, 5, 16]"
    check_pass(
        [*TIDY, RecognizeNorms()], module, torch.randn(1, 5, 16), counts={"mul": 1, "rms_norm": 1}, refused=[reason]
    )


class Gated(nn.Module):
    """A norm scaled by another activation."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return gate * unit(x)


def test_an_activation_is_no_weight() -> None:
    check_pass(
        [*TIDY, RecognizeNorms()],
        Gated(),
        torch.randn(1, 5, 16),
        torch.randn(1, 5, 16),
        counts={"mul": 1, "rms_norm": 1},
        refused=["gate is no weight"],
    )


def test_a_layer_norm_over_two_dimensions_is_refused() -> None:
    module = Norm(lambda x, w: F.layer_norm(x, (5, 16), None, None, 1e-5) * w, torch.float32)
    reason = "it normalises over 2 dimensions, not the last alone"
    check_pass([*TIDY, RecognizeNorms()], module, torch.randn(2, 5, 16), refused=[reason])


FAMILIES = {
    "llama": {"rms_norm": 5},
    "gemma2": {"rms_norm": 9},
    "gemma3_text": {"rms_norm": 13},
    "olmo2": {"rms_norm": 9},
    "qwen3": {"rms_norm": 9},
    "olmo": {"layer_norm": 5},
    "cohere": {"layer_norm": 3},
    "gpt2": {"layer_norm": 5},
    "phi": {"layer_norm": 3},
    "diffllama": {"rms_norm": 7},
}


WIDE = ("llama", "cohere")
"""Families tried in fp32 too, where there are no casts; functions above cover the rest."""


@pytest.mark.parametrize(
    ("family", "dtype"), [(name, torch.bfloat16) for name in FAMILIES] + [(name, torch.float32) for name in WIDE]
)
def test_models_have_all_their_norms_recognised(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype)
    changes = sum(FAMILIES[family].values())
    for step in TIDY:
        step.run(model, Rewriter(model))
    model = check_pass(RecognizeNorms(), model, tokens(), changes=changes, refused=[])
    found = {name: len(arguments(model, name)) for name in ("rms_norm", "layer_norm")}
    assert {name: count for name, count in found.items() if count} == FAMILIES[family]
