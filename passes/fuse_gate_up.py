"""One projection for the gate and the up part of a gated MLP."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes.merge_linears import merge_linears, reached_linears

aten = torch.ops.aten

_BETWEEN = frozenset(
    {
        aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dims, aten._to_copy.default,
        aten.mul.Tensor, aten.add.Tensor, aten.clamp.default,
    }
)  # fmt: skip
"""Between a projection and the gated activation: views, casts, multipliers, limits."""


@dataclass(frozen=True)
class FuseGateUp:
    """Make the two projections that feed one gated activation, and read the same input, one projection."""

    name: ClassVar[str] = "fuse_gate_up"
    together: bool = False
    """Whether weights that a file stores in different types may become one, because they will be stored alike."""

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Fuse at every `gated_act` of `model`; return how many projections were made."""
        made = 0
        for node in model.calls(torch.ops.llmc.gated_act.default):
            operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node)]
            linears = [linear for operand in operands for linear in reached_linears(operand, _BETWEEN)]
            made += merge_linears(model, rewriter, self.name, linears, self.together)
        return made
