"""Recognise attention: SDPA, and `softmax(q kᵀ ...) v` as models spell it out.

From the product with the values the pass walks back to the softmax, and from there to the product of queries and keys,
reading off what lies between: a scale, a softcap, additive or filled masks, ALiBi, one more column for a sink. Batched
products over [heads, S, D] and over [1, heads, S, D] are the same thing, since a trace holds one sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, fx

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.ir.tracing import Value

aten = torch.ops.aten
ATTENTION = torch.ops.llmc.attention.default

_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_VIEWS = (aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim)
_KEPT = (aten._to_copy.default, aten.clone.default, aten.dropout.default, aten.expand.default, aten.contiguous.default)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)


_LEAST = -1e30
"""Scores kept above a number as low as this are hidden all the same."""


@dataclass(frozen=True)
class _Mask:
    """One mask: added to the scores times `factor`, or filled in with `fill` where it is true."""

    node: fx.Node
    factor: float = 1.0
    fill: float | None = None
    keeps: bool = False
    """Of a filled mask: true means attend rather than hide."""


@dataclass
class _Scores:
    """What was found between the softmax and the product of queries and keys."""

    masks: list[_Mask] = field(default_factory=list)
    scale: float = 1.0
    softcap: float = 0.0
    sinks: fx.Node | None = None
    query: fx.Node | None = None
    key: fx.Node | None = None
    constants: dict[fx.Node, float] = field(default_factory=dict)
    """Weights on the way that hold one number, and the number."""


@dataclass(frozen=True)
class RecognizeAttention:
    """Make every attention one `llmc::attention`."""

    name: ClassVar[str] = "recognize_attention"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Rewrite what is recognised; return how many attentions."""
        changes = 0
        for node in model.calls(aten.scaled_dot_product_attention.default):
            changes += self._from_sdpa(node, rewriter)
        for node in model.calls(*_PRODUCTS):
            if not node._erased:
                changes += self._from_softmax(node, model, rewriter)
        return changes

    def _from_sdpa(self, node: fx.Node, rewriter: Rewriter) -> int:
        q, k, v = node.args[:3]
        assert isinstance(q, fx.Node) and isinstance(k, fx.Node) and isinstance(v, fx.Node)
        mask = _argument(node, 3, "attn_mask")
        if _argument(node, 4, "dropout_p") not in (None, 0, 0.0):
            rewriter.refuse(self.name, node, "it drops scores at random")
            return 0
        if {_rank(part) for part in (q, k, v)} not in ({4}, {3}):
            rewriter.refuse(self.name, node, f"its operands have ranks {_rank(q)}, {_rank(k)}, {_rank(v)}, not 4")
            return 0
        causal = bool(_argument(node, 5, "is_causal"))
        given = node.kwargs.get("scale")
        assert given is None or isinstance(given, (int, float)), f"expected a number for the scale, got {given!r}"
        scale = float(q.meta["val"].shape[-1]) ** -0.5 if given is None else float(given)
        inputs = list(dict.fromkeys([q, k, v, *([mask] if isinstance(mask, fx.Node) else [])]))

        def build(*values: Value) -> object:
            of: dict[object, Value] = dict(zip(inputs, values, strict=True))
            parts = [_four(of[part]) for part in (q, k, v)]
            given = None if mask is None else _four(of[mask])
            out = ATTENTION(*parts, given, None, scale, 0.0, causal)
            return out if _rank(q) == 4 else aten.select.int(out, 0, 0)

        known = {mask: _first_key_seen} if isinstance(mask, fx.Node) else {}
        return int(rewriter.replace(self.name, inputs, [node], build, assume=known))

    def _from_softmax(self, node: fx.Node, model: Model, rewriter: Rewriter) -> int:
        weights, value = node.args[:2]
        assert isinstance(weights, fx.Node) and isinstance(value, fx.Node)
        softmax = _back_to_softmax(weights)
        if softmax is None:
            return 0
        reason, found = _read(softmax, model)
        if reason is None and _rank(node) not in (3, 4):
            reason = f"its result has rank {_rank(node)}, not 3 or 4"
        if reason is not None or found.query is None or found.key is None:
            rewriter.refuse(self.name, node, reason or "no product of queries and keys before the softmax")
            return 0
        query, key = found.query, found.key
        extra = [mask.node for mask in found.masks] + ([found.sinks] if found.sinks is not None else [])
        inputs = list(dict.fromkeys([query, key, value, *extra, *found.constants]))

        def build(*values: Value) -> object:
            of = dict(zip(inputs, values, strict=True))
            q, k, v = _four(of[query]), _four(of[key]), _four(of[value])
            k = aten.permute.default(k, [0, 1, 3, 2])
            mask = _joined([_as_added(of[mask.node], mask) for mask in found.masks])
            sinks = None if found.sinks is None else aten.reshape.default(of[found.sinks], [-1])
            out = ATTENTION(q, k, v, mask, sinks, found.scale, found.softcap, False)
            dtype = node.meta["val"].dtype
            out = out if out.dtype == dtype else aten._to_copy.default(out, dtype=dtype)
            return out if _rank(node) == 4 else aten.select.int(out, 0, 0)

        known: dict[fx.Node, Callable[[Tensor], Tensor]] = {
            mask.node: (_first_key_seen if mask.keeps else _first_key_not_hidden)
            for mask in found.masks
            if mask.fill is not None
        }
        for constant, number in found.constants.items():
            known[constant] = partial(torch.full_like, fill_value=number)
        return int(rewriter.replace(self.name, inputs, [node], build, assume=known))


def _first_key_seen(mask: Tensor) -> Tensor:
    # What a row that sees nothing gives is up to each spelling; it does not occur under a causal mask.
    if mask.dtype == torch.bool and mask.shape[-1] > 0:
        mask[..., 0] = True
    return mask


def _first_key_not_hidden(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool and mask.shape[-1] > 0:
        mask[..., 0] = False
    return mask


def _argument(node: fx.Node, position: int, name: str) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].dim())


def _four(value: Value) -> Value:
    """[H, S, D] as [1, H, S, D]; masks of lower rank likewise."""
    while value.ndim < 4:
        value = aten.unsqueeze.default(value, 0)
    return value


def _joined(masks: list[Value]) -> Value | None:
    if not masks:
        return None
    total = masks[0]
    for mask in masks[1:]:
        total = aten.add.Tensor(total, mask)
    return total


def _as_added(value: Value, mask: _Mask) -> Value:
    value = _four(value)
    if mask.fill is None:
        return value if mask.factor == 1.0 else aten.mul.Tensor(value, mask.factor)
    hidden, seen = (aten.full.default([], number, dtype=torch.float32) for number in (mask.fill, 0.0))
    chosen: Value = aten.where.self(value, *((seen, hidden) if mask.keeps else (hidden, seen)))
    return chosen


def _back_to_softmax(node: fx.Node) -> fx.Node | None:
    """The softmax that attention weights come from, through casts, views and the removal of a sink's column."""
    while node.op == "call_function" and len(node.users) == 1:
        if node.target in _SOFTMAX:
            return node
        if node.target not in (*_KEPT, *_VIEWS, aten.slice.Tensor):
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node if node.target in _SOFTMAX else None


def _read(softmax: fx.Node, model: Model) -> tuple[str | None, _Scores]:
    """Walk from the softmax back to the product of queries and keys; the reason for giving up, if any."""
    found = _Scores()
    dim = softmax.args[1]
    if not isinstance(dim, int) or dim % _rank(softmax) != _rank(softmax) - 1:
        return "the softmax is not over the keys", found
    factor, in_cap = 1.0, False
    node: object = softmax.args[0]
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target in _PRODUCTS or node.target is aten.baddbmm.default:
            offset = 0
            if node.target is aten.baddbmm.default:
                offset = 1
                beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
                assert isinstance(beta, (int, float)) and isinstance(alpha, (int, float)), "expected numbers"
                if beta:
                    found.masks.append(_Mask(node.all_input_nodes[0], factor * beta))
                factor *= alpha
            query, key = node.args[offset : offset + 2]
            assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
            found.query, found.key = query, key
            found.scale = factor * found.softcap if in_cap else factor
            return None, found
        step = _step(node, found, factor, model)
        if step is None:
            return f"{node.target} lies between the softmax and the scores", found
        node, ratio = step
        if ratio == "tanh":
            found.softcap, factor, in_cap = factor, 1.0, True
        elif isinstance(ratio, float):
            factor *= ratio
    return "the scores are no product of queries and keys", found


def _step(node: fx.Node, found: _Scores, factor: float, model: Model) -> tuple[object, float | str] | None:
    """One op back from the softmax: where to go on, and by what the scores were multiplied on the way."""
    first = node.args[0]
    if node.target in _KEPT or node.target in _VIEWS:
        return first, 1.0
    second = node.args[1] if len(node.args) > 1 else None
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        ratio = _constant(second, model, found)
        if ratio is None:
            return None
        return first, ratio if node.target is aten.mul.Tensor else 1.0 / ratio
    if node.target is aten.tanh.default:
        return None if found.softcap or (found.masks and factor == 0) else (first, "tanh")
    if node.target is aten.add.Tensor and isinstance(first, fx.Node):
        if not isinstance(second, fx.Node) or node.kwargs.get("alpha", 1) != 1:
            return None
        scores, mask = (first, second) if _leads_to_product(first) else (second, first)
        found.masks.append(_Mask(mask, factor))
        return scores, 1.0
    if node.target in (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf) and isinstance(first, fx.Node):
        for kept, other, keeps in ((second, node.args[2], True), (node.args[2], second, False)):
            fill = _constant(other, model, found)
            if fill is not None and isinstance(kept, fx.Node):
                found.masks.append(_Mask(first, fill=fill * factor, keeps=keeps))
                return kept, 1.0
        return None
    if node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor) and isinstance(second, fx.Node):
        fill = _constant(node.args[2], model, found)
        if fill is None:
            return None
        found.masks.append(_Mask(second, fill=fill * factor))
        return first, 1.0
    if node.target is aten.maximum.default:
        for kept, other in ((first, second), (second, first)):
            least = _constant(other, model, found)
            if least is not None and least * factor <= _LEAST:
                return kept, 1.0
        return None
    if node.target is aten.sub.Tensor and isinstance(second, fx.Node) and second.target is aten.amax.default:
        return first, 1.0
    if node.target is aten.cat.default and found.sinks is None and not found.masks and factor == 1.0:
        parts = node.args[0]
        if isinstance(parts, (list, tuple)) and len(parts) == 2 and isinstance(parts[1], fx.Node):
            found.sinks = _sink_weight(parts[1])
            return None if found.sinks is None else (parts[0], 1.0)
    return None


def _constant(value: object, model: Model, found: _Scores) -> float | None:
    """A number, or the value of a scalar that the graph makes with `full` or holds as a constant."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, fx.Node) and model.is_weight(value) and model.weights[value.name].nbytes <= 8:
        found.constants[value] = float(model.weights[value.name].evaluate().item())
        return found.constants[value]
    if isinstance(value, fx.Node) and value.target in (aten.full.default, aten.scalar_tensor.default):
        number = value.args[1] if value.target is aten.full.default else value.args[0]
        return float(number) if isinstance(number, (int, float)) else None
    if isinstance(value, fx.Node) and value.target in (aten._to_copy.default, aten.expand.default):
        return _constant(value.args[0], model, found)
    return None


def _leads_to_product(node: fx.Node) -> bool:
    """Whether a chain of elementwise ops leads from a product of two values that depend on tokens."""
    for _ in range(16):
        if node.target in _PRODUCTS or node.target is aten.baddbmm.default:
            return True
        if node.op != "call_function" or not node.args:
            return False
        source = node.args[1] if node.target is aten.where.self else node.args[0]
        if not isinstance(source, fx.Node):
            return False
        node = source
    return False


def _sink_weight(node: fx.Node) -> fx.Node | None:
    """The weight, one number a head, that a sink's column is expanded from."""
    while node.op == "call_function" and node.target in (*_VIEWS, *_KEPT):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    wide = [size for size in node.meta["val"].shape if size != 1]
    return node if node.op == "placeholder" and len(wide) <= 1 else None
