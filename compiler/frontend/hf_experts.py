"""Asks a transformers model for its experts as one op.

transformers lets a mixture's expert computation be supplied by name. Under the name `llmc` a layer emits one
`llmc::moe`. What a layer does between its two products is found by probing its own code, not from its class: the
gate is evaluated on known values and compared with each form that `llmc::moe` can express. A layer of any other form
computes its experts in plain torch.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from llmc.ir.ops import ACTIVATIONS, activate_expert

NAME = "llmc"

_PROBE_WIDTH = 64


@dataclass(frozen=True)
class Gating:
    """What an expert does between its two products, in the terms of `llmc::moe`."""

    act: str
    gated: bool
    interleaved: bool = False
    limit: float = 0.0
    up_offset: float = 0.0

    def __call__(self, h: Tensor) -> Tensor:
        """Apply it to h [..., 2F], or [..., F] when there is no gate."""
        return activate_expert(h, self.act, self.gated, self.interleaved, self.limit, self.up_offset)


def experts_forward(module: nn.Module, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
    """Experts for `transformers.integrations.moe.ExpertsInterface`: x [T, D], ids and weights [T, K] -> [T, D]."""
    gating = find_gating(module) if _is_plain(module, x, expert_ids, expert_weights) else None
    if gating is None:
        from transformers.integrations.moe import batched_mm_experts_forward

        result: Tensor = batched_mm_experts_forward(module, x, expert_ids, expert_weights)
        return result
    up = "gate_up_proj" if gating.gated else "up_proj"
    bias = bool(module.has_bias)
    moe: Tensor = torch.ops.llmc.moe(
        x,
        expert_ids,
        expert_weights,
        getattr(module, up),
        getattr(module, f"{up}_bias") if bias else None,
        module.down_proj,
        module.down_proj_bias if bias else None,
        gating.act,
        gating.gated,
        gating.interleaved,
        bool(module.is_transposed),
        gating.limit,
        gating.up_offset,
    )
    return moe


def find_gating(module: nn.Module) -> Gating | None:
    """How the experts of `module` activate, by evaluating its own code on probes.

    None when no known form agrees, or when the activation has parameters (which may have no values yet).
    """
    gated = bool(getattr(module, "has_gate", True))
    own = getattr(module, "_apply_gate" if gated else "act_fn", None)
    if own is None or any(True for child in module.children() for _ in (*child.parameters(), *child.buffers())):
        return None
    with _disable_current_modes(), torch.no_grad():
        probe = _probe(2 * _PROBE_WIDTH if gated else _PROBE_WIDTH)
        try:
            expected = own(probe)
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
            return None  # it needs more than the product itself
        for gating in _candidates(module, gated):
            value = gating(probe)
            if value.shape == expected.shape and torch.allclose(value, expected.to(value.dtype), 1e-6, 1e-6):
                return gating
    return None


def register() -> None:
    """Make the name `llmc` known to transformers as an experts implementation."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, experts_forward)


def _is_plain(module: nn.Module, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> bool:
    """Whether the layer is two products over stacked weights, with nothing after the second one."""
    if getattr(module, "_is_expert_parallel", False) or getattr(module, "has_post_expert_norm", False):
        return False
    weights = [getattr(module, name, None) for name in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")]
    stacked = all(isinstance(weight, Tensor) and weight.dim() == 3 for weight in weights)
    return stacked and x.dim() == 2 and expert_ids.dim() == 2 and expert_ids.shape == expert_weights.shape


def _probe(width: int) -> Tensor:
    """Values of both signs and of many magnitudes, so that no clamp or slope of a gate goes unseen: [64, width]."""
    generator = torch.Generator("cpu").manual_seed(0)
    sign, size = torch.rand(2, 64, width, dtype=torch.float64, device="cpu", generator=generator)
    return torch.sign(sign - 0.5) * torch.pow(10.0, size * 6 - 3)


def _candidates(module: nn.Module, gated: bool) -> list[Gating]:
    """Every form that `llmc::moe` can express with the numbers that the module itself holds, plainest first."""
    if not gated:
        return [Gating(act, False) for act in ACTIVATIONS]
    limits = {float(value) for value in vars(module).values() if type(value) in (int, float) and value > 0}
    forms = product((0.0, *sorted(limits)), (0.0, 1.0), (False, True), ACTIVATIONS)
    return [Gating(act, True, interleaved, limit, offset) for limit, offset, interleaved, act in forms]
