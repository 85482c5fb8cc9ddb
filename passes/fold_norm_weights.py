"""Fold the weight of a norm into the projections that read it: one product less for each token."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import fx

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter

aten = torch.ops.aten
llmc = torch.ops.llmc


@dataclass(frozen=True)
class FoldNormWeights:
    """Scale the columns of the linears after an `rms_norm` by its weight, so that the norm needs none.

    The scaled weight is a product of two weights in the graph, which `FoldConstants` makes a recipe. In fp32 this
    rounds no worse than before. In fp16 and bf16 it rounds the stored weights once more, instead of the activations,
    and is only done when asked for.
    """

    name: ClassVar[str] = "fold_norm_weights"
    low_precision: bool = False
    """Whether to fold in fp16 and bf16 too, where the model itself rounds between norm and weight."""

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Fold every norm that only linears read; return how many.

        Raises:
            BuildFailed: the folded weights round worse than the numbers promise allows.
        """
        made = 0
        for node in model.calls(llmc.rms_norm.default):
            if not isinstance(node.args[1], fx.Node):
                continue
            reason = self._refusal(model, node)
            if reason is not None:
                rewriter.refuse(self.name, node, reason)
                continue
            made += _fold(rewriter, node)
        return made

    def _refusal(self, model: Model, norm: fx.Node) -> str | None:
        """Why the weight of `norm` stays where it is."""
        weight, value = norm.args[1], norm.meta["val"]
        if not model.is_weight(weight) or weight.meta["val"].dim() != 1:  # type: ignore[union-attr]
            return f"its weight {weight} is not one vector for all"
        for user in norm.users:
            if user.target is not aten.linear.default or user.args[0] is not norm or norm in user.args[1:]:
                return f"{user.name} also reads it, and is no linear"
            matrix = user.args[1]
            if not isinstance(matrix, fx.Node) or not model.is_weight(matrix):
                return f"{matrix}, which multiplies it, is no weight"
            if any(other not in norm.users for other in matrix.users):
                return f"{matrix.name} is also used elsewhere, and would have to be stored twice"
        if value.dtype in (torch.float32, torch.float64):
            return None
        if not self.low_precision:
            return f"it would round the stored weights to {str(value.dtype).removeprefix('torch.')} once more"
        if norm.args[4]:
            return "the model applies its weight before rounding, so that folding would round once more"
        return None


def _fold(rewriter: Rewriter, norm: fx.Node) -> bool:
    linears = list(norm.users)
    x, weight, eps, offset, in_float = cast("tuple[fx.Node, fx.Node, float, float, bool]", norm.args)
    read = [x, weight, *(arg for linear in linears for arg in linear.args[1:])]
    inputs = [node for node in dict.fromkeys(read) if isinstance(node, fx.Node)]

    def build(*values: Any) -> list[Any]:  # noqa: ANN401 - traced values
        of = dict(zip(inputs, values, strict=True))
        unit = llmc.rms_norm.default(of[x], None, eps, 0.0, in_float)
        scale = of[weight] if not offset else of[weight] + offset
        result = []
        for linear in linears:
            matrix, *bias = [of[arg] for arg in linear.args[1:] if isinstance(arg, fx.Node)]
            result.append(aten.linear.default(unit, _scaled(matrix, scale), *bias))
        return result

    return rewriter.replace(FoldNormWeights.name, inputs, linears, build)


def _scaled(matrix: Any, scale: Any) -> Any:  # noqa: ANN401 - traced values
    """The columns of `matrix` by `scale`, rounded once."""
    if matrix.dtype in (torch.float32, torch.float64):
        return matrix * scale
    return (matrix.float() * scale.float()).to(matrix.dtype)
