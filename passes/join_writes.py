"""Values written part by part into an empty tensor are joined by `cat` instead."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.ir.signature import arguments
from llmc.ir.sizes import number, same_shape

aten = torch.ops.aten


@dataclass(frozen=True)
class JoinWrites:
    """Replace chains of `slice_scatter` that write every element of a tensor, so that it may as well be empty.

    This is what `y = x.new_empty(...); y[..., :n] = a; y[..., n:] = b` is traced to.
    """

    name: ClassVar[str] = "join_writes"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Join all such writes; return the number of rewrites."""
        changes = 0
        for node in model.calls(aten.slice_scatter.default):
            if node.users and same_shape(node.meta["val"], node.args[1].meta["val"]):  # type: ignore[union-attr]
                changes += self._overwrite(node, rewriter)
        for node in model.calls(aten.slice_scatter.default):
            if node.users and not any(_writes_into(user, node) for user in node.users):
                changes += self._join(node, rewriter)
        return changes

    def _overwrite(self, node: fx.Node, rewriter: Rewriter) -> int:
        """A write of the whole tensor gives what is written."""
        base, value = node.all_input_nodes[:2]
        return int(rewriter.replace(self.name, [base, value], [node], lambda _, value: value, kind="exact"))

    def _join(self, last: fx.Node, rewriter: Rewriter) -> int:
        dim = arguments(last)["dim"]
        size = number(last.meta["val"].shape[dim])
        writes: list[_Write] = []
        node = last
        while node.target is aten.slice_scatter.default and arguments(node)["dim"] == dim:
            write = _write(node, size)
            if write is None:
                return 0
            writes.append(write)
            node = node.args[0]  # type: ignore[assignment]
        writes.sort(key=lambda write: write.start)
        edges = [0, *(write.end for write in writes)]
        if edges[-1] != size or [write.start for write in writes] != edges[:-1]:
            rewriter.refuse(self.name, last, f"the parts written do not make up the {size} elements of dimension {dim}")
            return 0
        return int(self._replace(last, node, writes, dim, rewriter))

    def _replace(self, last: fx.Node, base: fx.Node, writes: Sequence["_Write"], dim: int, rewriter: Rewriter) -> bool:
        parts = [write.value for write in writes]
        read = base.all_input_nodes if base.op == "call_function" else [base]
        inputs = list(dict.fromkeys([*parts, *(node for node in read if isinstance(node.meta["val"], torch.Tensor))]))

        def build(*values: Any) -> object:  # noqa: ANN401 - traced values
            given = dict(zip(inputs, values, strict=True))
            return torch.cat([given[part] for part in parts], dim=dim)

        return rewriter.replace(self.name, inputs, [last], build, kind="exact")


@dataclass(frozen=True)
class _Write:
    """One part: `value` at [start, end) of the dimension."""

    start: int
    end: int
    value: fx.Node


def _writes_into(user: fx.Node, node: fx.Node) -> bool:
    return user.target is aten.slice_scatter.default and user.args[0] is node


def _write(node: fx.Node, size: int | None) -> _Write | None:
    """What `node` writes; None when where is not known as numbers, or when it is cast or broadcast on the way."""
    args = arguments(node)
    start, end, value = args["start"] or 0, args["end"], args["src"]
    end = size if end is None else end
    if size is None or args["step"] != 1 or not isinstance(start, int) or not isinstance(end, int):
        return None
    if value.target is aten.copy.default:
        template, source = value.meta["val"], value.args[1].meta["val"]
        if template.dtype != source.dtype or not same_shape(template, source):
            return None
        value = value.args[1]
    start, end = (min(edge + size if edge < 0 else edge, size) for edge in (start, end))
    return _Write(start, end, value)
