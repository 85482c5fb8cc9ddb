"""Give normalisation its name: RMS norms and layer norms, however they are spelled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from llmc.ir.match import Match, shared
from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter, Rule, apply_rules
from llmc.ir.sizes import number, same_shape

aten = torch.ops.aten
llmc = torch.ops.llmc

Unit = Callable[[Any, Any, Any], Any]
"""A normalisation without scale, as it is spelled: of x, x widened to fp32, and eps."""


def _product(x: Any, wide: Any, eps: Any) -> Any:  # noqa: ANN401 - traced values, as in every pattern below
    return wide * torch.rsqrt((wide * wide).mean(-1, True) + eps)


def _quotient(x: Any, wide: Any, eps: Any) -> Any:  # noqa: ANN401
    return wide / torch.sqrt((wide * wide).mean(-1, True) + eps)


def _inverse(x: Any, wide: Any, eps: Any) -> Any:  # noqa: ANN401
    return wide * aten.reciprocal.default(torch.sqrt((wide * wide).mean(-1, True) + eps))


def _promoted(x: Any, wide: Any, eps: Any) -> Any:  # noqa: ANN401
    return x * torch.rsqrt((wide * wide).mean(-1, True) + eps)


def _centred(unit: Unit) -> Unit:
    def centred(x: Any, wide: Any, eps: Any) -> Any:  # noqa: ANN401
        difference = wide - wide.mean(-1, True)
        return unit(difference, difference, eps)

    return centred


_RMS: tuple[Unit, ...] = (_product, _quotient, _inverse, _promoted)
_LAYER: tuple[Unit, ...] = tuple(_centred(unit) for unit in (_product, _quotient, _inverse))


def _weight_after_rounding(unit: Unit) -> Callable[..., Any]:
    def find(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Any:  # noqa: ANN401
        return weight * unit(x, shared(x.float()), eps).to(dtype)  # type: ignore[arg-type]

    return find


def _weight_before_rounding(unit: Unit) -> Callable[..., Any]:
    def find(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Any:  # noqa: ANN401
        return (weight * unit(x, shared(x.float()), eps)).to(dtype)  # type: ignore[arg-type]

    return find


def _weight(unit: Unit) -> Callable[..., Any]:
    def find(x: Tensor, weight: Tensor, eps: float) -> Any:  # noqa: ANN401
        return weight * unit(x, x, eps)

    return find


def _rounded(unit: Unit) -> Callable[..., Any]:
    def find(x: Tensor, eps: float, dtype: torch.dtype) -> Any:  # noqa: ANN401
        return unit(x, shared(x.float()), eps).to(dtype)  # type: ignore[arg-type]

    return find


def _rounded_root(x: Tensor, eps: float, dtype: torch.dtype) -> Any:  # noqa: ANN401
    wide: Any = shared(x.float())  # type: ignore[arg-type]
    return x * torch.rsqrt((wide * wide).mean(-1, True) + eps).to(dtype)


def _bare(unit: Unit) -> Callable[..., Any]:
    def find(x: Tensor, eps: float) -> Any:  # noqa: ANN401
        return unit(x, x, eps)

    return find


def _length(x: Tensor, eps: float) -> Any:  # noqa: ANN401
    return x * torch.rsqrt((x * x).sum(-1, True) + eps)


def _normed_length(match: Match, x: Any, eps: float) -> Any:  # noqa: ANN401
    size = int(match.val("x").shape[-1])
    return llmc.rms_norm.default(x, None, eps / size, 0.0, True) * size**-0.5


def _symbolic_size(match: Match) -> str | None:
    size = number(match.val("x").shape[-1])
    return None if size is not None else "its size is not known"


def _normed_rms(in_float: bool) -> Callable[..., Any]:
    return lambda x, weight, eps: llmc.rms_norm.default(x, weight, eps, 0.0, in_float)


def _unweighted_rms(x: Any, eps: float) -> Any:  # noqa: ANN401
    return llmc.rms_norm.default(x, None, eps, 0.0, True)


def _normed_layer(in_float: bool) -> Callable[..., Any]:
    return lambda x, weight, eps: llmc.layer_norm.default(x, weight, None, eps, in_float)


def _fused_layer(x: Any, weight: Any, bias: Any, eps: float) -> Any:  # noqa: ANN401
    return llmc.layer_norm.default(x, weight, bias, eps, True)


def _fused_rms(x: Any, weight: Any, eps: float) -> Any:  # noqa: ANN401
    return llmc.rms_norm.default(x, weight, eps, 0.0, True)


def _layer_call(x: Tensor, sizes: list[int], weight: Any, bias: Any, eps: float, cudnn: bool) -> Any:  # noqa: ANN401
    return aten.layer_norm.default(x, sizes, weight, bias, eps, cudnn)


def _rms_call(x: Tensor, sizes: list[int], weight: Any, eps: float) -> Any:  # noqa: ANN401
    return aten.rms_norm.default(x, sizes, weight, eps)


def _several_dimensions(match: Match) -> str | None:
    sizes = match["sizes"]
    return None if len(sizes) == 1 else f"it normalises over {len(sizes)} dimensions, not the last alone"


def _refusal(model: Model) -> Callable[[Match], str | None]:
    def unless(match: Match) -> str | None:
        """Why the match is no norm of the dialect."""
        x, result, weight = match.val("x"), match.node.meta["val"], match["weight"]
        if result.dtype != x.dtype:
            return f"the result is {_name(result.dtype)}, its input {_name(x.dtype)}"
        if not same_shape(x, result):
            return f"the weight {list(weight.meta['val'].shape)} enlarges its input {list(x.shape)}"
        if isinstance(weight, fx.Node) and not _is_of_weights(model, weight):
            return f"{weight.name} is no weight"
        return None

    return unless


def _is_of_weights(model: Model, node: fx.Node) -> bool:
    """Whether `node` is computed from weights alone."""
    return model.is_weight(node) or (
        bool(node.all_input_nodes) and all(_is_of_weights(model, s) for s in node.all_input_nodes)
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class RecognizeNorms:
    """Make every RMS norm an `rms_norm` and every layer norm a `layer_norm`.

    Found are `aten.rms_norm` and `aten.layer_norm`, and norms written out: `x · rsqrt(mean(x²) + eps)` or a division by
    the root, with the mean subtracted first or not, in the model's dtype or widened to fp32 and rounded back, with a
    weight applied before or after the rounding, or without one. A weight may be any expression of weights, such as
    1 + w. A vector divided by its length, `x · rsqrt(sum(x²) + eps)`, is an RMS norm times a constant.
    """

    name: ClassVar[str] = "recognize_norms"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Name all norms, the most complete spelling first; return how many.

        Raises:
            BuildFailed: a norm does not compute what it replaces.
        """
        unless = _refusal(model)
        fused = [
            Rule(self.name, _layer_call, _fused_layer, _several_dimensions),
            Rule(self.name, _rms_call, _fused_rms, _several_dimensions),
        ]
        made = apply_rules(model, rewriter, fused)
        for endings in (
            ((_weight_after_rounding, False), (_weight_before_rounding, True)),
            ((_weight, True), (_rounded, True)),
            ((_bare, True),),
        ):
            rules = [
                Rule(self.name, [ending(unit) for unit in units], build(in_float), unless)
                for units, build in ((_LAYER, _normed_layer), (_RMS, _normed_rms))
                for ending, in_float in endings
            ]
            made += apply_rules(model, rewriter, rules)
        made += apply_rules(model, rewriter, [Rule(self.name, _rounded_root, _unweighted_rms, unless)])
        length = Rule(self.name, _length, _normed_length, _symbolic_size)
        return made + apply_rules(model, rewriter, [length])
