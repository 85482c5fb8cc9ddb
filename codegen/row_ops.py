"""Ops that treat each row alone, as row operations of a native program."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx

from llmc.codegen.layout import Scalar, Value, View
from llmc.codegen.regions import RowOp
from llmc.codegen.unlowered import Unlowered
from llmc.codegen.view_ops import apply_cat
from llmc.ir.signature import parameters

aten, llmc = torch.ops.aten, torch.ops.llmc

POINTWISE = {
    aten.add.Tensor: "add", aten.sub.Tensor: "sub", aten.mul.Tensor: "mul", aten.div.Tensor: "div",
    aten.pow.Tensor_Scalar: "pow", aten.pow.Tensor_Tensor: "pow", aten.maximum.default: "maximum",
    aten.minimum.default: "minimum", aten.add.Scalar: "add", aten.mul.Scalar: "mul", aten.sub.Scalar: "sub",
    aten.div.Scalar: "div", aten.rsub.Scalar: "rsub", aten.remainder.Scalar: "remainder",
    aten.neg.default: "neg", aten.abs.default: "abs", aten.exp.default: "exp", aten.log.default: "log",
    aten.sqrt.default: "sqrt", aten.rsqrt.default: "rsqrt", aten.cos.default: "cos", aten.sin.default: "sin",
    aten.tanh.default: "tanh", aten.sigmoid.default: "sigmoid", aten.relu.default: "relu", aten.silu.default: "silu",
    aten.gelu.default: "gelu", aten.erf.default: "erf", aten.floor.default: "floor",
    aten.reciprocal.default: "reciprocal",
    aten.softplus.default: "softplus", aten.square.default: "square", aten.clamp.default: "clamp",
    aten.clamp_min.default: "clamp_min", aten.clamp_max.default: "clamp_max", aten.where.self: "where",
    aten.eq.Tensor: "eq", aten.ne.Tensor: "ne", aten.lt.Tensor: "lt", aten.le.Tensor: "le", aten.gt.Tensor: "gt",
    aten.ge.Tensor: "ge", aten.eq.Scalar: "eq", aten.ne.Scalar: "ne", aten.lt.Scalar: "lt", aten.le.Scalar: "le",
    aten.gt.Scalar: "gt", aten.ge.Scalar: "ge", aten.bitwise_and.Tensor: "and", aten.bitwise_or.Tensor: "or",
    aten.logical_and.default: "and", aten.logical_or.default: "or", aten.bitwise_not.default: "not",
    aten.logical_not.default: "not", aten._to_copy.default: "copy", aten.clone.default: "copy",
    aten.reshape.default: "copy_flat",
}  # fmt: skip
"""Ops of one element at a time."""

REDUCTIONS = {
    aten.softmax.int: "softmax", aten._softmax.default: "softmax", aten.sum.dim_IntList: "sum",
    aten.mean.dim: "mean", aten.amax.default: "amax", aten.amin.default: "amin", aten.cumsum.default: "cumsum",
    aten.log_softmax.int: "log_softmax",
}  # fmt: skip
"""Ops over the last axis of a row."""


class Places(Protocol):
    """What the row operations ask of the lowering: where values are."""

    def value(self, arg: object, node: fx.Node) -> Value:
        """What an argument is; raises `Unlowered`."""

    def view(self, arg: object, node: fx.Node) -> View:
        """An argument that is a tensor; raises `Unlowered`."""

    def maybe(self, arg: object, node: fx.Node) -> View | None:
        """An argument that may be None."""

    def new(self, node: fx.Node, output: int | None = None) -> View:
        """A place for the node's value."""


def row_op(node: fx.Node, places: Places) -> Scalar | list[RowOp]:
    """The operations that compute a node, the last of them its value; raises `Unlowered` for what has none."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        raise Unlowered(node, f"{target} is not an op")
    names = [name for name, _, _ in parameters(target)]
    given: dict[str, Any] = {name: default for name, has, default in parameters(target) if has}
    given |= dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if target in (aten.full.default, aten.full_like.default, aten.scalar_tensor.default):
        fill = given.get("fill_value", given.get("s"))
        if isinstance(fill, (int, float)):
            return Scalar(fill, "f32" if node.meta["val"].dtype.is_floating_point else "i64")
    if target in POINTWISE:
        return _pointwise(node, POINTWISE[target], given, places)
    if target in REDUCTIONS:
        dims = given.get("dim", -1)
        dims = [dims] if isinstance(dims, int) else list(dims)
        source = places.view(given[names[0]], node)
        if [dim % len(source.axes) for dim in dims] != [len(source.axes) - 1] or source.axes[-1].size is None:
            raise Unlowered(node, f"reduces over axes {dims}, not over the last one")
        attrs = {"size": source.axes[-1].size}
        return [RowOp(REDUCTIONS[target], node.name, (source,), (places.new(node),), attrs)]
    special = _SPECIAL.get(target)
    if special is None:
        raise Unlowered(node, f"{target} has no native form")
    return special(node, given, places)


def _pointwise(node: fx.Node, op: str, given: dict[str, Any], places: Places) -> Scalar | list[RowOp]:
    attrs: dict[str, object] = {}
    operands = [value for name, value in given.items() if name in ("self", "other", "exponent", "condition")]
    if op == "where":
        operands = [given["condition"], given["self"], given["other"]]
    if given.get("alpha", 1) != 1:
        attrs["alpha"] = given["alpha"]
    if given.get("rounding_mode") not in (None, "floor"):
        raise Unlowered(node, f"rounding_mode {given['rounding_mode']}")
    if given.get("rounding_mode") == "floor":
        op = "floor_divide"
    if op == "gelu" and given.get("approximate") == "tanh":
        op = "gelu_tanh"
    if op == "clamp":
        attrs |= {"low": given.get("min"), "high": given.get("max")}
    if op in ("clamp_min", "clamp_max"):
        attrs |= {"low" if op == "clamp_min" else "high": given["min" if op == "clamp_min" else "max"]}
        op = "clamp"
    values = tuple(places.value(operand, node) for operand in operands)
    if all(isinstance(value, Scalar) for value in values):
        if op == "copy" and isinstance(values[0], Scalar):
            return values[0]
        raise Unlowered(node, "computes a number that is not folded")
    return [RowOp(op, node.name, values, (places.new(node),), attrs)]


def _norm(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    op = str(node.target).split(".")[1]
    inputs = (places.view(given["x"], node), places.maybe(given["weight"], node), places.maybe(given.get("bias"), node))
    attrs = {"eps": float(given["eps"]), "offset": float(given.get("offset", 0.0))}
    return [RowOp(op, node.name, inputs, (places.new(node),), attrs)]


def _rope(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    inputs = tuple(places.view(given[name], node) for name in ("x", "cos", "sin"))
    return [RowOp("rope", node.name, inputs, (places.new(node),), {"interleaved": given["interleaved"]})]


def _gated(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    inputs = (places.value(given["gate"], node), places.value(given["up"], node))
    return [RowOp("gated_act", node.name, inputs, (places.new(node),), {"act": given["act"]})]


def _cat(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    output = places.new(node)
    sources = [places.view(item, node) for item in given["tensors"]]
    targets = apply_cat(output, given.get("dim", 0), sources)
    if targets is None:
        raise Unlowered(node, "joins values along the rows")
    ops = [RowOp("copy", node.name, (source,), (target,)) for source, target in zip(sources, targets, strict=True)]
    return [*ops[:-1], RowOp("copy", node.name, (sources[-1],), (targets[-1], output))]


def _embedding(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    table, indices = given.get("weight", given.get("self")), given.get("indices", given.get("index"))
    if isinstance(indices, (list, tuple)):
        return _index(node, given, places)
    if given.get("dim", 0) != 0:
        return _select_columns(node, places.view(table, node), given["dim"], indices, places)
    inputs = (places.view(table, node), places.view(indices, node))
    return [RowOp("gather_rows", node.name, inputs, (places.new(node),))]


def _index(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    table, indices = places.view(given["self"], node), list(given["indices"])
    used = [(place, index) for place, index in enumerate(indices) if index is not None]
    if len(used) != 1:
        raise Unlowered(node, f"indexes {len(used)} axes at once")
    place, index = used[0]
    if place == 0 and table.domain == "" and table.axes[0].size is not None:
        return [RowOp("gather_rows", node.name, (table, places.view(index, node)), (places.new(node),))]
    return _select_columns(node, table, place, index, places)


def _select_columns(node: fx.Node, source: View, place: int, index: object, places: Places) -> list[RowOp]:
    """Elements along a fixed axis, chosen by a vector of indices that is the same for all rows."""
    chosen = places.view(index, node)
    if chosen.domain or len(chosen.axes) != 1 or source.axes[place].size is None:
        raise Unlowered(node, "indexes by a value that is no vector of fixed size")
    return [RowOp("select_columns", node.name, (source, chosen), (places.new(node),), {"axis": place})]


def _packed_embedding(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    attrs = {
        "weights": tuple(part.name for part in given["parts"]),
        "format": given["format"],
        "n": int(given["n"]),
        "k": int(given["k"]),
    }
    return [RowOp("gather_packed", node.name, (places.view(given["tokens"], node),), (places.new(node),), attrs)]


def _topk(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    source = places.view(given["self"], node)
    if given.get("dim", -1) % len(source.axes) != len(source.axes) - 1 or not given.get("largest", True):
        raise Unlowered(node, "takes other than the largest along the last axis")
    outputs = (places.new(node, 0), places.new(node, 1))
    return [RowOp("topk", node.name, (source,), outputs, {"k": int(given["k"])})]


def _gather(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    source, index = places.view(given["self"], node), places.view(given["index"], node)
    last = len(source.axes) - 1
    if given["dim"] % len(source.axes) == last and source.axes[-1].size is not None:
        return [RowOp("gather_last", node.name, (source, index), (places.new(node),))]
    if given["dim"] == 0 and source.domain == "" and len(source.axes) == 2:
        return [RowOp("gather_table", node.name, (source, index), (places.new(node),))]
    raise Unlowered(node, "gathers along an axis that is not the last")


def _scatter(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    source, index = places.value(given["self"], node), places.view(given["index"], node)
    if given["dim"] % len(index.axes) != len(index.axes) - 1:
        raise Unlowered(node, "scatters along an axis that is not the last")
    value = places.value(given.get("value", given.get("src")), node)
    return [RowOp("scatter_last", node.name, (source, index, value), (places.new(node),))]


def _repeat_interleave(node: fx.Node, given: dict[str, Any], places: Places) -> list[RowOp]:
    source = places.view(given["self"], node)
    dim = given.get("dim")
    if dim is None or dim % len(source.axes) != len(source.axes) - 1 or source.axes[-1].size is None:
        raise Unlowered(node, "repeats along an axis that is not the last")
    return [RowOp("repeat_last", node.name, (source,), (places.new(node),), {"repeats": int(given["repeats"])})]


_SPECIAL: dict[object, Callable[[fx.Node, dict[str, Any], Places], list[RowOp]]] = {
    llmc.rms_norm.default: _norm,
    llmc.layer_norm.default: _norm,
    llmc.rope.default: _rope,
    llmc.gated_act.default: _gated,
    aten.cat.default: _cat,
    aten.embedding.default: _embedding,
    aten.index_select.default: _embedding,
    aten.index.Tensor: _index,
    aten.topk.default: _topk,
    aten.gather.default: _gather,
    aten.scatter.value: _scatter,
    aten.scatter.src: _scatter,
    aten.repeat_interleave.self_int: _repeat_interleave,
    llmc.embedding_packed.default: _packed_embedding,
}
