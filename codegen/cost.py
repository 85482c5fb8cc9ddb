"""What a region costs: operations and bytes as expressions of the sizes of a step.

    region_cost(nodes: Sequence[fx.Node], model: Model, float_bytes=4) -> Cost
    linear_cost(rows: Expr, n: int, k: int, format: str) -> Cost          without a graph
    seconds(cost: Cost, target: Target) -> Expr                           roofline: max(bytes, operations) + overhead
    at(expr: Expr, tokens=1, rows=1, sequences=1, context=0) -> float

Symbols: `T` tokens of the step, `R` rows of logits, `B` sequences, `L` keys that a token attends to. Values within a
region cost no memory. Activations go through the caches: only what exceeds the last one counts as memory traffic.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import sympy
import torch
from sympy import Expr, Integer
from torch import fx
from torch._ops import OpOverload

from llmc.codegen.target import Target
from llmc.ir.infer import leaves
from llmc.ir.model import Model
from llmc.ir.packed_formats import FLOAT_FORMATS, format_named
from llmc.ir.packed_layout import tile_count
from llmc.ir.show import size_letters

T, R, B, L = (sympy.Symbol(name, integer=True, nonnegative=True) for name in "TRBL")
"""Tokens of the step, rows of logits, sequences, keys that a token attends to."""

aten, llmc = torch.ops.aten, torch.ops.llmc
_ZERO = Integer(0)

PER_ELEMENT: Mapping[object, int] = {
    llmc.rms_norm.default: 4,
    llmc.layer_norm.default: 8,
    llmc.rope.default: 3,
    llmc.gated_act.default: 12,
    aten.silu.default: 10,
    aten.gelu.default: 14,
    aten.sigmoid.default: 10,
    aten.tanh.default: 10,
    aten.exp.default: 8,
    aten._softmax.default: 12,
    aten.topk.default: 0,
    aten.embedding.default: 0,
    llmc.embedding_packed.default: 2,
    aten.index_select.default: 0,
    aten.cat.default: 0,
    aten.clone.default: 0,
}
"""Operations for each element of the result; 1 for what is not listed, 0 for views."""

_WINDOW = re.compile(r"\bq < k \+ (\d+)|\bq - k < (\d+)")


@dataclass(frozen=True)
class Cost:
    """Operations and bytes of some work."""

    flops: Mapping[str, Expr] = field(default_factory=dict)
    """Operations by the number format they are done in (`llmc.codegen.target.NUMBERS`)."""
    weight_bytes: Expr = _ZERO
    activation_bytes: Expr = _ZERO
    cache_bytes: Expr = _ZERO
    """Bytes of the KV cache read and written."""

    def __add__(self, other: "Cost") -> "Cost":
        names = dict.fromkeys([*self.flops, *other.flops])
        return Cost(
            {name: self.flops.get(name, _ZERO) + other.flops.get(name, _ZERO) for name in names},
            self.weight_bytes + other.weight_bytes,
            self.activation_bytes + other.activation_bytes,
            self.cache_bytes + other.cache_bytes,
        )

    @property
    def bytes(self) -> Expr:
        """All bytes, whatever they are for."""
        return self.weight_bytes + self.activation_bytes + self.cache_bytes

    @property
    def operations(self) -> Expr:
        """All operations, whatever their format."""
        return sum(self.flops.values(), _ZERO)


def seconds(cost: Cost, target: Target) -> Expr:
    """The least time in which `target` can do it: the slower of its memory and its arithmetic, and its overhead."""
    spilled = sympy.Max(0, cost.activation_bytes - target.caches[-1])
    reading = (cost.weight_bytes + cost.cache_bytes + spilled) / target.bandwidth.value
    computing = sum((flops / target.peaks[name].value for name, flops in cost.flops.items()), _ZERO)
    return sympy.Max(reading, computing) + target.overhead.value


def at(expr: Expr, *, tokens: int = 1, rows: int = 1, sequences: int = 1, context: int = 0) -> float:
    """The value of an expression for a step of these sizes."""
    return float(expr.subs({T: tokens, R: rows, B: sequences, L: context}))


def number_format(format: str) -> str:
    """The number format in which a weight format is multiplied."""
    return format_named(format).arithmetic


def packed_bytes(n: int, k: int, format: str) -> int:
    """Bytes of a packed weight [n, k], with its padding."""
    parts = format_named(format).parts.values()
    return sum(prod(part.shape(tile_count(n), k)) * part.dtype.itemsize for part in parts)


def linear_cost(rows: Expr, n: int, k: int, format: str, float_bytes: int = 4) -> Cost:
    """A linear over `rows` rows: the weight is read once; K inputs and N results a row."""
    return Cost(
        {number_format(format): 2 * rows * n * k},
        Integer(packed_bytes(n, k, format)),
        rows * (n + k) * float_bytes,
    )


def region_cost(nodes: Iterable[fx.Node], model: Model, float_bytes: int | None = 4) -> Cost:
    """The cost of computing `nodes` as one region: what is read from outside, and what is read of them outside.

    float_bytes: size of float activations in memory, 4 in CPU programs; None is the size of their dtype.
    """
    inside = list(nodes)
    letters = size_letters(model.graph)
    total = Cost()
    weights: dict[fx.Node, None] = {}
    outside: dict[fx.Node, None] = {}
    for node in inside:
        total += _own_cost(node, letters)
        for source in node.all_input_nodes:
            if model.is_weight(source):
                weights.update({} if _reads_part(node, source) else {source: None})
            elif source not in inside and not _is_bookkeeping(source) and not _is_view(node):
                outside[source] = None
    stored = [node for node in inside if any(user not in inside for user in node.users)]
    moved = sum((_bytes(node, letters, float_bytes) for node in [*outside, *stored]), _ZERO)
    read = sum((_bytes(node, letters, None) for node in weights), _ZERO)
    return total + Cost({}, read, moved)


def _own_cost(node: fx.Node, letters: Mapping[sympy.Symbol, str]) -> Cost:
    """Operations, caches, and weights that are read in part; other weights and activations are the region's."""
    special = _SPECIAL.get(node.target)
    if special is not None:
        return special(node, letters)
    if _is_view(node) or not isinstance(node.target, OpOverload):
        return Cost()
    return Cost({"f32": PER_ELEMENT.get(node.target, 1) * _elements(node, letters)})


def _linear(node: fx.Node, letters: Mapping[sympy.Symbol, str]) -> Cost:
    weight = _meta(node.args[1])
    format = FLOAT_FORMATS.get(weight.dtype, "f32")
    return Cost({number_format(format): 2 * _elements(node, letters) * int(weight.shape[1])})


def _linear_packed(node: fx.Node, letters: Mapping[sympy.Symbol, str]) -> Cost:
    format, k = str(node.args[3]), int(str(node.args[5]))
    return Cost({number_format(format): 2 * _elements(node, letters) * k})


def _embedding(node: fx.Node, letters: Mapping[sympy.Symbol, str]) -> Cost:
    rows = _elements_of(node.args[1], letters)
    table = _meta(node.args[0])
    return Cost({}, rows * int(table.shape[1]) * table.dtype.itemsize)


def _embedding_packed(node: fx.Node, letters: Mapping[sympy.Symbol, str]) -> Cost:
    format, k = str(node.args[2]), int(str(node.args[4]))
    row = Integer(packed_bytes(16, k, format)) / 16
    return Cost({"f32": 2 * _elements(node, letters)}, _elements_of(node.args[0], letters) * row)


def _cached_attention(node: fx.Node, letters: Mapping[sympy.Symbol, str]) -> Cost:
    q, v = _meta(node.args[0]), _meta(node.args[2])
    heads, size, value_size = int(q.shape[1]), int(q.shape[2]), int(v.shape[2])
    found = _WINDOW.search(str(node.args[12]))
    keys = L if found is None else sympy.Min(L, int(found[1] or found[2]))
    token = cached_token_bytes(node)
    return Cost({"f32": T * keys * heads * (2 * (size + value_size) + 10)}, cache_bytes=(B * keys + T) * token)


def cached_token_bytes(node: fx.Node) -> int:
    """Bytes that K and V of a token take in the caches of an attention."""
    caches = [_meta(node.args[place]) for place in (3, 4)]
    return sum(int(cache.shape[2]) * int(cache.shape[3]) * cache.dtype.itemsize for cache in caches)


def _moe_packed(node: fx.Node, letters: Mapping[sympy.Symbol, str]) -> Cost:
    arguments = _named(node)
    experts, width = int(arguments["experts"]), int(arguments["width"])
    up_rows = 2 * width if arguments["gated"] else width
    return _experts(
        node,
        experts,
        packed_bytes(up_rows, _width(node), arguments["up_format"])
        + packed_bytes(_width(node), width, arguments["down_format"]),
        {number_format(arguments["up_format"]): up_rows * _width(node)},
        {number_format(arguments["down_format"]): width * _width(node)},
        letters,
    )


def _moe(node: fx.Node, letters: Mapping[sympy.Symbol, str]) -> Cost:
    arguments = _named(node)
    up, down = _meta(arguments["up"]), _meta(arguments["down"])
    kind = number_format(FLOAT_FORMATS.get(up.dtype, "f32"))
    sizes = [prod(int(size) for size in weight.shape[1:]) for weight in (up, down)]
    weight = sum(sizes) * up.dtype.itemsize
    return _experts(node, int(up.shape[0]), weight, {kind: sizes[0]}, {kind: sizes[1]}, letters)


def _experts(
    node: fx.Node,
    experts: int,
    expert_bytes: int,
    up: Mapping[str, int],
    down: Mapping[str, int],
    letters: Mapping[sympy.Symbol, str],
) -> Cost:
    """K of E experts a token, all as likely: with so many tokens, E (1 - (1 - K / E)^tokens) of them are read."""
    chosen = int(_meta(node.args[1]).shape[-1])
    tokens = _elements(node, letters) / _width(node)
    used = experts * (1 - (1 - Integer(chosen) / experts) ** tokens)
    work = Cost({name: 2 * tokens * chosen * size for name, size in up.items()}, used * expert_bytes)
    return work + Cost({name: 2 * tokens * chosen * size for name, size in down.items()})


_SPECIAL: Mapping[object, Callable[[fx.Node, Mapping[sympy.Symbol, str]], Cost]] = {
    aten.linear.default: _linear,
    llmc.linear_packed.default: _linear_packed,
    aten.embedding.default: _embedding,
    llmc.embedding_packed.default: _embedding_packed,
    llmc.cached_attention.default: _cached_attention,
    llmc.moe_packed.default: _moe_packed,
    llmc.moe.default: _moe,
}


def _reads_part(node: fx.Node, weight: fx.Node) -> bool:
    """Whether the op reads some rows of this weight, which its own cost counts."""
    if node.target is aten.embedding.default:
        return node.args[0] is weight
    if node.target is llmc.embedding_packed.default:
        return True
    arguments = _named(node) if node.target in (llmc.moe.default, llmc.moe_packed.default) else {}
    return any(weight in leaves(arguments.get(name)) for name in ("up", "down"))


def _is_bookkeeping(node: fx.Node) -> bool:
    """Whether it is a cache, which attention counts, or says which tokens belong together: a few bytes a sequence."""
    return node.op == "placeholder" and ("_cache_" in node.name or node.name in ("starts", "lengths", "blocks"))


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    return isinstance(node.target, OpOverload) and any(item.alias_info for item in node.target._schema.returns)


def _named(node: fx.Node) -> dict[str, Any]:
    assert isinstance(node.target, OpOverload), "an op of a graph"
    names = [argument.name for argument in node.target._schema.arguments]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _meta(node: object) -> torch.Tensor:
    assert isinstance(node, fx.Node), "an argument that is a tensor"
    value: torch.Tensor = node.meta["val"]
    return value


def _width(node: fx.Node) -> int:
    return int(_meta(node).shape[-1])


def _size(shape: Sequence[object], letters: Mapping[sympy.Symbol, str]) -> Expr:
    symbols = {symbol: {"T": T, "R": R, "B": B}.get(letter, symbol) for symbol, letter in letters.items()}
    sizes = [size.node.expr.xreplace(symbols) if isinstance(size, torch.SymInt) else size for size in shape]
    result: Expr = sympy.Mul(*sizes)
    return result


def _elements(node: fx.Node, letters: Mapping[sympy.Symbol, str]) -> Expr:
    values = [value for value in leaves(node.meta.get("val")) if isinstance(value, torch.Tensor)]
    return sum((_size(value.shape, letters) for value in values), _ZERO)


def _elements_of(node: object, letters: Mapping[sympy.Symbol, str]) -> Expr:
    return _size(_meta(node).shape, letters)


def _bytes(node: fx.Node, letters: Mapping[sympy.Symbol, str], float_bytes: int | None) -> Expr:
    total = _ZERO
    for value in leaves(node.meta.get("val")):
        if isinstance(value, torch.Tensor):
            wide = float_bytes if float_bytes is not None and value.dtype.is_floating_point else value.dtype.itemsize
            total = total + _size(value.shape, letters) * wide
    return total
