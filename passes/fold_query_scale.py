"""A number that queries are multiplied by is a part of attention's scale."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter

aten = torch.ops.aten

_SCALE = 5
"""Place of the scale among the arguments of an attention."""
_VIEWS = frozenset({
    aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dims, aten._to_copy.default,
})  # fmt: skip
"""What may lie between the product and the attention, which alone reads each of them."""


@dataclass(frozen=True)
class FoldQueryScale:
    """Leave queries as they are projected: one operation less between the projection and attention."""

    name: ClassVar[str] = "fold_query_scale"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Fold the factors of all queries; return how many."""
        return sum(self._fold(node, rewriter) for node in model.calls(torch.ops.llmc.attention.default))

    def _fold(self, attention: fx.Node, rewriter: Rewriter) -> int:
        query: Any = attention.args[0]
        views: list[fx.Node] = []
        while query.target in _VIEWS and len(query.users) == 1 and len(query.all_input_nodes) == 1:
            views.append(query)
            query = query.args[0]
        factor: Any = query.args[1] if query.target is aten.mul.Tensor and len(query.users) == 1 else None
        if not isinstance(factor, (int, float)):
            return 0
        source, others = query.args[0], [node for node in attention.all_input_nodes if node is not attention.args[0]]
        inputs = list(dict.fromkeys([source, *others]))

        def build(*values: Any) -> object:  # noqa: ANN401 - traced values
            value_of = dict(zip(inputs, values, strict=True))
            value = value_of[source]
            for view in reversed(views):
                value = view.target(value, *view.args[1:], **view.kwargs)  # type: ignore[operator]
            args: list[Any] = [value, *(value_of.get(arg, arg) for arg in attention.args[1:])]
            args[_SCALE] = float(args[_SCALE]) * factor
            return attention.target(*args)  # type: ignore[operator]

        return int(rewriter.replace(self.name, inputs, [attention], build))
