"""The dialect: the few operations that llmc adds to ATen, each with its meaning.

Every op is declared by a signature, a *reference* (what it computes, in eager torch, on any device), a *fake rule*
(shape and dtype of its result) and a document. The reference is the oracle of every pass and kernel; it accumulates
in `accumulate_dtype` and rounds once, to the dtype of its result. After import the ops are
`torch.ops.llmc.NAME.default`; they are for inference and have no gradient.

Letters: B batch, S tokens of a sequence, T packed tokens, D head size or width, H query heads, Hk key heads, K keys
(in `moe`: experts of a token), R rotary size, E experts, F width of an expert.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("llmc", "FRAGMENT")


@dataclass(frozen=True)
class DialectOp:
    """One op of the dialect: the declaration behind `torch.ops.llmc.NAME.default`."""

    name: str
    signature: str
    """Arguments and result in the syntax of `torch.library`, without the name."""
    reference: Callable[..., Tensor | list[Tensor]]
    fake: Callable[..., Tensor | list[Tensor]]

    @property
    def document(self) -> str:
        """What the op computes, with the shapes of its arguments."""
        return self.reference.__doc__ or ""


DIALECT: dict[str, DialectOp] = {}
"""Every declared op, by name. Op sets in other modules of `llmc.ir` add theirs with `declare`."""


_Reference = TypeVar("_Reference", bound=Callable[..., Tensor | list[Tensor]])


def declare(signature: str, fake: Callable[..., Tensor | list[Tensor]]) -> Callable[[_Reference], _Reference]:
    """Declare the decorated function as the reference of the dialect op of its name.

    `signature` is the schema without the name, such as `(Tensor x, float eps) -> Tensor` (an argument that the op
    writes is a `Tensor(a!)`); `fake` takes the same arguments as the reference. Declaring a name again keeps the
    first registration.
    """

    def register(reference: _Reference) -> _Reference:
        name = reference.__name__
        DIALECT[name] = DialectOp(name, signature, reference, fake)
        if hasattr(torch.ops.llmc, name):
            return reference
        _LIBRARY.define(f"{name}{signature}", tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"llmc::{name}", fake, lib=_LIBRARY)
        return reference

    return register


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a reference accumulates values of `dtype`: fp64 for fp64, fp32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
"""The activations that `gated_act` and `moe` know, by the name they take."""


def _like_first(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@declare("(Tensor x, Tensor? weight, float eps, float offset, bool weight_in_float) -> Tensor", _like_first)
def rms_norm(x: Tensor, weight: Tensor | None, eps: float, offset: float, weight_in_float: bool) -> Tensor:
    """`x / sqrt(mean(x²) + eps) · (offset + weight)` over the last dimension, in the dtype of x.

    x: [..., D]; weight: broadcastable to x without enlarging it ([D], [H, D], ...), or None for no scale at all.
    `weight_in_float` says where the result is rounded to the dtype of x: after the weight (Gemma), or before it, the
    product then being computed in that dtype (Llama).
    """
    wide = x.to(accumulate_dtype(x.dtype))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is None:
        return y.to(x.dtype)
    if weight_in_float:
        return (y * (offset + weight.to(y.dtype))).to(x.dtype)
    return ((offset + weight if offset else weight) * y.to(x.dtype)).to(x.dtype)


@declare("(Tensor x, Tensor? weight, Tensor? bias, float eps, bool weight_in_float) -> Tensor", _like_first)
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, weight_in_float: bool) -> Tensor:
    """`(x - mean(x)) / sqrt(var(x) + eps) · weight + bias` over the last dimension, in the dtype of x.

    x: [..., D]; weight and bias: broadcastable to x without enlarging it, or None. The variance is the biased one.
    `weight_in_float` says whether weight and bias are applied before the result is rounded to the dtype of x (as
    `aten.layer_norm` does), or after, in that dtype.
    """
    wide = x.to(accumulate_dtype(x.dtype))
    centred = wide - wide.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = y if weight_in_float else y.to(x.dtype)
    y = y if weight is None else y * weight.to(y.dtype)
    y = y if bias is None else y + bias.to(y.dtype)
    return y.to(x.dtype)


@declare("(Tensor x, Tensor cos, Tensor sin, bool interleaved) -> Tensor", _like_first)
def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the first R elements of each head by its position: `x · cos + rotate(x) · sin`; the rest passes through.

    x: [..., D]; cos, sin: [..., R] with R <= D even, broadcastable to x[..., :R]. `rotate` maps the halves (a, b) of
    the R elements to (-b, a), or each neighbouring pair (a, b) to (-b, a) when `interleaved`.
    """
    size = cos.shape[-1]
    wide = x[..., :size].to(torch.promote_types(accumulate_dtype(x.dtype), cos.dtype))
    if interleaved:
        rotated = torch.stack((-wide[..., 1::2], wide[..., 0::2]), dim=-1).flatten(-2)
    else:
        rotated = torch.cat((-wide[..., size // 2 :], wide[..., : size // 2]), dim=-1)
    y = (wide * cos + rotated * sin).to(x.dtype)
    return y if size == x.shape[-1] else torch.cat((y, x[..., size:]), dim=-1)


@declare("(Tensor gate, Tensor up, str act) -> Tensor", _like_first)
def gated_act(gate: Tensor, up: Tensor, act: str) -> Tensor:
    """`act(gate) · up`, rounded once.

    gate, up: [..., F], of one dtype; act: a name in `ACTIVATIONS`.
    """
    wide = accumulate_dtype(gate.dtype)
    return (ACTIVATIONS[act](gate.to(wide)) * up.to(wide)).to(gate.dtype)


def _attention_fake(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@declare(
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? sinks, float scale, float softcap, bool causal) -> Tensor",
    _attention_fake,
)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
    causal: bool,
) -> Tensor:
    """Scaled dot-product attention with grouped key heads: `softmax(q kᵀ · scale + mask) v`.

    q: [B, H, S, D]; k: [B, Hk, K, D]; v: [B, Hk, K, Dv] -> [B, H, S, Dv]; query head h reads key head h // (H / Hk).
    mask: broadcastable to [B, H, S, K], bool (True attends) or added to the scores; sinks: [H], the score of one more
    key per head whose value is zero. `softcap` > 0 bounds the scores by `softcap · tanh(scores / softcap)` before the
    mask. `causal` hides from query i the keys after i + K - S. A query that attends to nothing gives zeros.
    """
    groups = q.shape[1] // k.shape[1]
    wide = accumulate_dtype(q.dtype)
    keys = k.to(wide).repeat_interleave(groups, dim=1)
    values = v.to(wide).repeat_interleave(groups, dim=1)
    scores = torch.matmul(q.to(wide), keys.transpose(-2, -1)) * scale
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(wide)
    if causal:
        queries, length = scores.shape[-2:]
        last = torch.arange(queries, device=q.device)[:, None] + (length - queries)
        scores = scores.masked_fill(torch.arange(length, device=q.device) > last, -torch.inf)
    return torch.matmul(attention_weights(scores, sinks), values).to(q.dtype)


def attention_weights(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """The softmax of scores [..., H, S, K] over keys and an optional sink of score [H]; all hidden gives zeros."""
    top = scores.amax(-1, keepdim=True)
    sink = None if sinks is None else sinks.to(scores.dtype)[:, None, None]
    if sink is not None:
        top = torch.maximum(top, sink)
    top = top.masked_fill(top == -torch.inf, 0.0)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - top)
    return weights / total.masked_fill(total == 0, 1.0)


@declare(
    "(Tensor x, Tensor expert_ids, Tensor expert_weights, Tensor up, Tensor? up_bias, Tensor down, Tensor? down_bias,"
    " str act, bool gated, bool interleaved, bool transposed, float limit, float up_offset) -> Tensor",
    _like_first,
)
def moe(
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    act: str,
    gated: bool,
    interleaved: bool,
    transposed: bool,
    limit: float,
    up_offset: float,
) -> Tensor:
    """The weighted sum of the K experts that a router chose for each token.

    x: [T, D]; expert_ids: [T, K] integers below E; expert_weights: [T, K] -> [T, D]. An expert e is
    `down[e] · h + down_bias[e]`, h = `act(up[e] · x + up_bias[e])`. When `gated`, the result of `up` is a gate and an
    up part, as two halves or, if `interleaved`, as alternating elements, and h = `act(gate) · (up_offset + up)`;
    a `limit` > 0 first clamps gate to at most limit and the up part to [-limit, limit]. act: a name in `ACTIVATIONS`.

    up: [E, 2F or F, D]; down: [E, D, F]; when `transposed`: [E, D, 2F or F] and [E, F, D].
    up_bias: [E, 2F or F]; down_bias: [E, D]; either may be None.
    """
    wide = accumulate_dtype(x.dtype)
    result = torch.zeros(x.shape, dtype=wide, device=x.device)
    for expert in torch.unique(expert_ids).tolist():
        rows, slots = torch.where(expert_ids == expert)
        hidden = _expert_linear(x[rows], up, up_bias, expert, transposed)
        hidden = activate_expert(hidden.to(wide), act, gated, interleaved, limit, up_offset).to(x.dtype)
        y = _expert_linear(hidden, down, down_bias, expert, transposed).to(wide)
        result.index_add_(0, rows, y * expert_weights[rows, slots, None].to(wide))
    return result.to(x.dtype)


def _expert_linear(x: Tensor, weight: Tensor, bias: Tensor | None, expert: int, transposed: bool) -> Tensor:
    matrix = weight[expert].t() if transposed else weight[expert]
    return torch.nn.functional.linear(x, matrix, None if bias is None else bias[expert])


def activate_expert(h: Tensor, act: str, gated: bool, interleaved: bool, limit: float, up_offset: float) -> Tensor:
    """What `moe` does between the two products of an expert: h [..., 2F] -> [..., F], or [..., F] when not `gated`."""
    if not gated:
        return ACTIVATIONS[act](h)
    gate, up = (h[..., 0::2], h[..., 1::2]) if interleaved else h.chunk(2, dim=-1)
    if limit > 0:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return ACTIVATIONS[act](gate) * (up + up_offset)
