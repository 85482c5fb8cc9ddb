"""One projection for queries, keys and values: what is merged, what is not, and the reason."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from support.check_pass import assert_close, check_pass, op_counts, trace
from support.tiny_models import tiny_model, tokens
from torch import Tensor, nn

from llmc.ir.interpret import interpret
from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.ir.weights import Constant, Expr, Source
from llmc.passes.canonicalize import Canonicalize
from llmc.passes.fold_constants import FoldConstants
from llmc.passes.fuse_qkv import FuseQkv
from llmc.passes.recognize_norms import RecognizeNorms
from llmc.passes.recognize_rope import RecognizeRope

X = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0))
DYNAMIC = {0: [1]}


class Attention(nn.Module):
    """Attention with 4 query and 2 key heads of 6; `inputs` maps x to what each projection reads."""

    def __init__(
        self, bias: tuple[bool, bool, bool] = (False, False, False), inputs: Callable[..., object] | None = None
    ):
        super().__init__()
        torch.manual_seed(0)
        self.q_proj = nn.Linear(12, 24, bias=bias[0])
        self.k_proj = nn.Linear(12, 12, bias=bias[1])
        self.v_proj = nn.Linear(12, 12, bias=bias[2])
        self.inputs = inputs or (lambda x: (x, x, x))

    def forward(self, x: Tensor) -> Tensor:
        parts = zip((self.q_proj, self.k_proj, self.v_proj), self.inputs(x), strict=True)  # type: ignore[call-overload]
        q, k, v = (proj(part).unflatten(-1, (-1, 6)).transpose(1, 2) for proj, part in parts)
        return torch.ops.llmc.attention(q, k, v, None, None, 0.4, 0.0, True)  # type: ignore[no-any-return]


def tidied(module: nn.Module) -> Model:
    model = trace(module, X, dynamic=DYNAMIC)
    Canonicalize().run(model, Rewriter(model))
    return model


def check(module: nn.Module, changes: int, refused: tuple[str, ...] = ()) -> Model:
    return check_pass(FuseQkv(), tidied(module), X, dynamic=DYNAMIC, changes=changes, refused=refused)


def test_one_projection_is_left_alone() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(12, 36)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (-1, 6)).transpose(1, 2).split([2, 2, 2], dim=1)
            return torch.ops.llmc.attention(q, k, v, None, None, 0.4, 0.0, True)  # type: ignore[no-any-return]

    check(Fused(), changes=0)


def test_projections_of_one_input_become_one() -> None:
    model = check(Attention(), changes=1)
    assert op_counts(model)["linear"] == 1
    (split,) = model.calls(torch.ops.aten.split_with_sizes.default)
    assert list(split.args[1]) == [24, 12, 12]  # type: ignore[arg-type]


def test_the_merged_weight_becomes_a_recipe() -> None:
    model = check(Attention(), changes=1)
    FoldConstants().run(model, Rewriter(model))
    (linear,) = model.calls(torch.ops.aten.linear.default)
    weight = model.weights[linear.args[1].name]  # type: ignore[union-attr]
    assert weight.shape == (48, 12)
    assert "cat" not in op_counts(model)


def test_biases_are_merged_too() -> None:
    (linear,) = check(Attention(bias=(True, True, True)), changes=1).calls(torch.ops.aten.linear.default)
    assert linear.args[2].meta["val"].shape == (48,)  # type: ignore[union-attr]


def test_a_missing_bias_becomes_zeros() -> None:
    model = check(Attention(bias=(True, False, True)), changes=1)
    (linear,) = model.calls(torch.ops.aten.linear.default)
    assert linear.args[2].meta["val"].shape == (48,)  # type: ignore[union-attr]
    assert op_counts(model)["full"] == 1


def test_projections_behind_norms_rotations_and_casts_are_found() -> None:
    class Normed(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (proj(x).unflatten(-1, (-1, 6)) for proj in (self.q_proj, self.k_proj, self.v_proj))
            cos = torch.ones(6)
            q, k = (torch.ops.llmc.rms_norm(part, None, 1e-5, 0.0, False).transpose(1, 2) for part in (q, k))
            q, k = (torch.ops.llmc.rope(part, cos, cos, False) * 0.5 for part in (q, k))
            return torch.ops.llmc.attention(q, k, v.transpose(1, 2), None, None, 0.4, 0.0, True)  # type: ignore[no-any-return]

    assert op_counts(check(Normed(), changes=1))["linear"] == 1


def test_projections_of_different_inputs_are_left_alone() -> None:
    module = Attention(inputs=lambda x: (x, torch.relu(x), torch.tanh(x)))
    refused = ("k_proj reads relu, q_proj reads x", "v_proj reads tanh, k_proj reads relu")
    assert op_counts(check(module, changes=0, refused=refused))["linear"] == 3


def test_the_two_of_one_input_are_merged_without_the_third() -> None:
    def inputs(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        other = torch.relu(x)
        return x, other, other

    model = check(Attention(inputs=inputs), changes=1, refused=("k_proj reads relu, q_proj reads x",))
    assert op_counts(model)["linear"] == 2


def test_a_weight_used_twice_is_left_alone() -> None:
    module = Attention()
    module.v_proj = module.k_proj
    model = tidied(module)
    rewriter = Rewriter(model)
    assert FuseQkv().run(model, rewriter) == 0
    (weight,) = {near.reason.split(" of ")[0] for near in rewriter.refused}
    assert weight in ("k_proj_weight", "v_proj_weight")
    assert len(rewriter.refused) == 2


def test_tied_weights_are_left_alone() -> None:
    model = tidied(Attention())
    model.weights["v_proj_weight"] = model.weights["k_proj_weight"]
    rewriter = Rewriter(model)
    assert FuseQkv().run(model, rewriter) == 0
    assert [near.reason for near in rewriter.refused] == [
        "k_proj_weight of k_proj is also used by v_proj",
        "v_proj_weight of v_proj is also used by k_proj",
    ]


def test_a_weight_computed_in_the_graph_is_left_alone() -> None:
    class Scaled(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q = nn.functional.linear(x, self.q_proj.weight * x.sum())
            k, v = self.k_proj(x), self.v_proj(x)
            q, k, v = (part.unflatten(-1, (-1, 6)).transpose(1, 2) for part in (q, k, v))
            return torch.ops.llmc.attention(q, k, v, None, None, 0.4, 0.0, True)  # type: ignore[no-any-return]

    model = check(Scaled(), changes=1, refused=("a weight of linear is computed in the graph",))
    assert op_counts(model)["linear"] == 2


@dataclass(frozen=True)
class Quantized:
    """A checkpoint whose tensors are stored in types of their own."""

    tensors: dict[str, Tensor]
    types: dict[str, str]

    def names(self) -> list[str]:
        return list(self.tensors)

    def key(self, name: str) -> str:
        return name

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].dtype

    def read(self, key: str) -> Tensor:
        return self.tensors[key]

    def stored_type(self, key: str) -> str:
        return self.types[key]


def test_weights_stored_in_different_types_are_left_apart() -> None:
    module = Attention()
    model = tidied(module)
    names = [f"{part}_proj.weight" for part in "qkv"]
    reader = Quantized(dict(module.named_parameters()), dict(zip(names, ("Q4_K", "Q4_K", "Q6_K"), strict=True)))
    for name in names:
        model.weights[name.replace(".", "_")] = Source.of(reader, name)
    check_pass(FuseQkv(), model, X, dynamic=DYNAMIC, changes=1, refused=("v_proj is stored as Q6_K, q_proj as Q4_K",))
    assert op_counts(model)["linear"] == 2


def test_weights_that_will_be_stored_alike_are_merged_whatever_the_file_has() -> None:
    module = Attention()
    model = tidied(module)
    reader = Quantized(dict(module.named_parameters()), {"q_proj.weight": "Q4_K", "v_proj.weight": "Q6_K"})
    for name in ("q_proj.weight", "v_proj.weight"):
        model.weights[name.replace(".", "_")] = Source.of(reader, name)
    check_pass(FuseQkv(together=True), model, X, dynamic=DYNAMIC, changes=1, refused=())
    assert op_counts(model)["linear"] == 1


FAMILIES = {
    "llama": (2, 11),
    "qwen2": (2, 11),
    "gpt_oss": (2, 7),
    "gpt2": (0, 9),
    "glm4_moe_lite": (2, 16),
}
"""Merged projections, and linears that are left."""


@pytest.mark.parametrize("family", FAMILIES)
def test_models_have_one_projection_before_each_attention(family: str) -> None:
    fused, linears = FAMILIES[family]
    model = tiny_model(family)
    rewriter = Rewriter(model)
    expected = interpret(model, (tokens(),))
    for step in (Canonicalize(), FoldConstants(), RecognizeNorms(), RecognizeRope()):
        step.run(model, rewriter)
    assert FuseQkv().run(model, rewriter) == fused
    assert FuseQkv().run(model, rewriter) == 0
    FoldConstants().run(model, rewriter)
    assert op_counts(model)["linear"] == linears
    merged = [weight for weight in model.weights.values() if isinstance(weight, Expr)]
    assert all(len(weight.sources()) >= 2 for weight in merged if weight.target is torch.ops.aten.cat.default)
    for have, want in zip(interpret(model, (tokens(),)), expected, strict=True):
        assert_close(have, want)
    assert not any(isinstance(weight, Constant) and weight.nbytes > 4096 for weight in model.weights.values())
