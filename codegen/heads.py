"""The heads that a linear's result is split into: what each goes through, and where it goes."""

import operator
from typing import Any, Protocol

import torch
from torch import fx

from llmc.codegen.groups import Group
from llmc.codegen.layout import Value, View
from llmc.codegen.regions import HeadPart, Norm, Rotation
from llmc.codegen.row_ops import Places
from llmc.codegen.view_ops import VIEWS, apply, is_cast

llmc = torch.ops.llmc


class HeadPlaces(Places, Protocol):
    """What is asked of the lowering."""

    values: dict[fx.Node, Value | list[Value]]
    """Where each value is."""
    written: set[tuple[fx.Node, str]]
    """Of which attention K or V is in the cache already."""


def split_heads(group: Group, places: HeadPlaces) -> tuple[tuple[HeadPart, ...], tuple[tuple[int, int], ...]]:
    """The parts of a linear whose heads are fused, and for each run of outputs its part and its head there."""
    size = group.leaves[0].size
    width = int(group.linear.meta["val"].shape[-1])
    rest = places.new(group.linear)
    for node in group.nodes[1:]:  # what is not fused reads the stored columns
        _give_view(node, group.linear, rest, places)
    parts: list[HeadPart] = []
    owner: dict[int, tuple[int, int]] = {}
    for number, leaf in enumerate(group.leaves):
        last = leaf.rope or leaf.norm or leaf.node
        attention = leaf.attention
        assert attention is not None, "every leaf is fused into attention"
        target = None
        if leaf.role == "q":
            target = places.new(last)
            places.values[last] = target
            for node in leaf.seen:
                _give_view(node, group.linear, rest, places)
        else:
            places.written.add((attention, leaf.role))
        rotation = None
        if leaf.rope is not None:
            cos, sin = (places.view(arg, leaf.rope) for arg in leaf.rope.args[1:3])
            rotation = Rotation(cos, sin, cos.axes[-1].size or 0, bool(leaf.rope.args[3]))
        norm = None if leaf.norm is None else _norm(leaf.norm, places)
        layer = int(str(attention.args[3]).rsplit("_", 1)[1])
        parts.append(HeadPart(leaf.role, len(leaf.columns), norm, rotation, target, layer))
        owner.update({start // size: (number, head) for head, start in enumerate(leaf.columns)})
    if len(owner) < width // size:
        parts.append(HeadPart("store", width // size, None, None, rest, -1))
    head_of = tuple(owner.get(place, (len(parts) - 1, place)) for place in range(width // size))
    return tuple(parts), head_of


def _give_view(node: fx.Node, linear: fx.Node, rest: View, places: HeadPlaces) -> None:
    source = node.args[0]
    if source is linear:
        seen: Any = apply(node, rest)
    else:
        held = places.values.get(source)  # type: ignore[arg-type]
        if held is None:
            return
        taken = node.target is operator.getitem and isinstance(held, list)
        seen = held[node.args[1]] if taken else (apply(node, held) if node.target in VIEWS or is_cast(node) else None)  # type: ignore[index,arg-type]
    if seen is not None:
        places.values[node] = seen


def _norm(node: fx.Node, places: Places) -> Norm:
    args: Any = node.args
    if node.target is llmc.rms_norm.default:
        _, weight, eps, offset, _ = args
        return Norm("rms_norm", places.maybe(weight, node), None, float(eps), float(offset))
    _, weight, bias, eps, _ = args
    return Norm("layer_norm", places.maybe(weight, node), places.maybe(bias, node), float(eps), 0.0)
