"""The experts of transformers' mixtures as one op: which layers it expresses, and that it computes what they do."""

import pytest
import torch
from torch import nn

from llmc.frontend import hf_experts
from llmc.frontend.export import LogitsOf
from llmc.frontend.hf_experts import Gating, find_gating
from tests.support.tiny_models import parts, tiny, tokens

PLAIN_SILU = Gating("silu", gated=True)
FAMILIES = {
    "mixtral": PLAIN_SILU,
    "qwen3_moe": PLAIN_SILU,
    "olmoe": PLAIN_SILU,
    "granitemoe": PLAIN_SILU,
    "deepseek_v3": PLAIN_SILU,
    "gpt_oss": Gating("quick_gelu", gated=True, interleaved=True, limit=7.0, up_offset=1.0),
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_mixture_traces_to_one_op_a_layer_and_computes_what_eager_computes(family: str) -> None:
    hf_experts.register()
    model = tiny(family)
    experts = parts(model, "is_transposed", "down_proj")
    example = tokens()
    model.set_experts_implementation("eager")
    with torch.no_grad():
        expected = model(example, use_cache=False).logits
    model.set_experts_implementation(hf_experts.NAME)
    assert [find_gating(part) for part in experts] == [FAMILIES[family]] * len(experts)
    with torch.no_grad():
        torch.testing.assert_close(model(example, use_cache=False).logits, expected, atol=2e-5, rtol=2e-5)
        program = torch.export.export(
            LogitsOf(model, use_cache=False), (example,), dynamic_shapes=({1: torch.export.Dim.DYNAMIC},), strict=False
        )
    found = sum(node.target is torch.ops.llmc.moe.default for node in program.graph.nodes)
    assert found == len(experts) > 0


class Experts(nn.Module):
    """The smallest thing that follows transformers' convention for experts."""

    has_gate = True
    has_bias = False
    is_transposed = False
    has_post_expert_norm = False
    _is_expert_parallel = False
    num_experts = 3

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 12, 8))
        self.up_proj = nn.Parameter(torch.randn(3, 12, 8))
        self.down_proj = nn.Parameter(torch.randn(3, 8, 6))
        self.act_fn = act
        self.limit = 5.0

    def _apply_gate(self, h: torch.Tensor) -> torch.Tensor:
        gate, up = h.chunk(2, dim=-1)
        return self.act_fn(gate) * up

    def forward(self, x: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor) -> torch.Tensor:
        return hf_experts.experts_forward(self, x, expert_ids, expert_weights)


class LateClamp(Experts):
    def _apply_gate(self, h: torch.Tensor) -> torch.Tensor:
        gate, up = h.chunk(2, dim=-1)
        return self.act_fn(gate).clamp(max=self.limit) * up


class Plain(Experts):
    has_gate = False

    def __init__(self, act: nn.Module) -> None:
        super().__init__(act)
        self.down_proj = nn.Parameter(torch.randn(3, 8, 12))


class Normed(Experts):
    has_post_expert_norm = True

    def post_expert_norm(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def traced(experts: Experts) -> tuple[bool, float]:
    """Whether the experts become the op, and how far their result is from transformers' own."""
    from transformers.integrations.moe import batched_mm_experts_forward

    arguments = torch.randn(7, 8), torch.randint(0, 3, (7, 2)), torch.rand(7, 2)
    with torch.no_grad():
        error = experts(*arguments) - batched_mm_experts_forward(experts, *arguments)
        program = torch.export.export(experts, arguments, strict=False)
    found = any(node.target is torch.ops.llmc.moe.default for node in program.graph.nodes)
    return found, error.abs().max().item()


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.Sigmoid(), nn.Tanh()])
@pytest.mark.parametrize("kind", [Experts, Plain])
def test_known_activations_become_the_op(act: nn.Module, kind: type[Experts]) -> None:
    torch.manual_seed(0)
    found, error = traced(kind(act))
    assert found
    assert error < 1e-4


@pytest.mark.parametrize(
    "experts",
    [LateClamp(nn.SiLU()), Normed(nn.SiLU()), Experts(nn.Softplus()), Experts(nn.PReLU())],
    ids=["clamped after the activation", "norm after each expert", "unknown activation", "activation with parameters"],
)
def test_other_forms_are_computed_in_plain_torch(experts: Experts) -> None:
    found, error = traced(experts)
    assert not found
    assert error == 0.0


def test_a_clamp_is_seen_however_large_its_limit() -> None:
    class Clamped(Experts):
        def _apply_gate(self, h: torch.Tensor) -> torch.Tensor:
            gate, up = h.chunk(2, dim=-1)
            return self.act_fn(gate.clamp(max=500.0)) * up.clamp(-500.0, 500.0)

    assert find_gating(Clamped(nn.SiLU())) is None
    known = Clamped(nn.SiLU())
    known.limit = 500.0
    assert find_gating(known) == Gating("silu", gated=True, limit=500.0)
