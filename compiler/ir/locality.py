"""Which token each element of each value belongs to: the proof that a packed step keeps tokens apart.

The graph is run on *labels* instead of numbers, at a small concrete length: every element carries the index of the one
token that it depends on, or `SHARED` when it is the same for all. Data movement moves labels, pointwise ops must
meet equal labels, reductions and contractions must stay within one token. An op that would mix two tokens, and is not
attention over the cache, is named with its source line.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from llmc.errors import UnsupportedModel
from llmc.ir.model import Model

aten = torch.ops.aten
dialect = torch.ops.llmc

_COUNTING = (aten.arange.default, aten.arange.start, aten.arange.start_step)

SHARED = -1
"""Label of an element that depends on no token: a weight, a constant."""

Label = Tensor | None
"""int64 labels in the shape of the value; None where all of it is shared."""


class Mixes(Exception):  # noqa: N818 - a signal between the rules and the walk, always turned into UnsupportedModel
    """An op brings two tokens together; the text says how."""


def token_labels(model: Model, tokens: int, rows: int = 0) -> dict[fx.Node, Label]:
    """Label every tensor of a packed graph, for `tokens` tokens in the step and `rows` rows of logits asked for.

    Raises:
        UnsupportedModel: an op mixes tokens, or its effect on tokens is not known; the message names it.
    """
    walk = _Walk(model, tokens, rows)
    for node in model.graph.nodes:
        walk.visit(node)
    return walk.labels


class _Walk:
    """One labelled run of a graph at concrete sizes."""

    def __init__(self, model: Model, tokens: int, rows: int) -> None:
        self.model = model
        self.labels: dict[fx.Node, Label] = {}
        self.sizes: dict[fx.Node, int] = {}
        places = {"tokens": tokens, "positions": tokens, "slots": tokens, "rows": rows}
        self.symbols = {
            str(node.meta["val"].shape[0]): places[node.name]
            for node in model.inputs()
            if node.name in places and isinstance(node.meta["val"].shape[0], torch.SymInt)
        }

    def concrete(self, size: object) -> int:
        """A size of this run as a number."""
        if isinstance(size, fx.Node):
            return self.sizes[size] if size in self.sizes else self.concrete(size.meta["val"])
        if isinstance(size, torch.SymInt):
            expression = size.node.expr
            return int(expression.subs({symbol: self.symbols[str(symbol)] for symbol in expression.free_symbols}))
        assert isinstance(size, int), f"expected a size, got {size!r}"
        return size

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The concrete sizes of a tensor node."""
        return tuple(self.concrete(size) for size in node.meta["val"].shape)

    def label(self, value: object) -> Label:
        """The labels of an argument; None for what is no tensor or is shared."""
        return self.labels.get(value) if isinstance(value, fx.Node) else None

    def full(self, node: fx.Node) -> Tensor:
        """The labels of a tensor node, spelled out where it is shared."""
        label = self.labels.get(node)
        return torch.full(self.shape(node), SHARED) if label is None else label

    def visit(self, node: fx.Node) -> None:
        """Label one node from its arguments."""
        value = node.meta.get("val")
        if node.op == "placeholder":
            per_token = node.name in ("tokens", "positions")
            self.labels[node] = torch.arange(self.shape(node)[0]) if per_token else None
        elif node.op == "output":
            return
        elif isinstance(value, torch.SymInt | int):
            self.sizes[node] = self.concrete(value)
        else:
            try:
                self.labels[node] = self._apply(node)
            except Mixes as reason:
                raise UnsupportedModel(
                    f"{_op(node)} at {node.meta['origin']} mixes tokens: {reason}; it cannot run token by token, and llmc "
                    "knows no cached form of it"
                ) from None

    def _apply(self, node: fx.Node) -> Label:
        from llmc.ir.locality_rules import RULES, is_pointwise

        if all(self.label(arg) is None for arg in node.all_input_nodes) and node.target not in (
            aten.arange.start_step,
        ):
            return None
        rule: Callable[[_Walk, fx.Node], Any] | None = RULES.get(node.target)
        if rule is not None:
            label: Label = rule(self, node)
            return label
        if is_pointwise(node.target):
            return join(*(self.full(arg) for arg in node.all_input_nodes if arg not in self.sizes))
        raise Mixes("its effect on tokens is not known")


def join(*labels: Tensor) -> Tensor:
    """Labels of a pointwise result: broadcast, shared yields to a token, two different tokens do not meet."""
    result = labels[0]
    for label in labels[1:]:
        a, b = torch.broadcast_tensors(result, label)
        clash = (a != b) & (a != SHARED) & (b != SHARED)
        if bool(clash.any()):
            place = clash.nonzero()[0]
            raise Mixes(f"it combines tokens {int(a[tuple(place)])} and {int(b[tuple(place)])}")
        result = torch.maximum(a, b)
    return result


def within(label: Tensor, dims: list[int]) -> Tensor:
    """Labels of a reduction over `dims`, kept with size 1: all that is reduced must be of one token."""
    if not dims:
        return label
    high = label.amax(dims, keepdim=True)
    low = torch.where(label == SHARED, high, label).amin(dims, keepdim=True)
    if not torch.equal(high, low):
        place = (high != low).nonzero()[0]
        raise Mixes(f"it reduces over tokens {int(low[tuple(place)])} and {int(high[tuple(place)])}")
    return high


def _op(node: fx.Node) -> str:
    return str(node.target).replace(".default", "")
