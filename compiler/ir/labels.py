"""Token labels: which token each element of a value depends on, and when labels may meet.

The values of a graph as `llmc.ir.locality` sees them: in place of numbers every element carries the index of the one
token that it depends on, or `SHARED` when it is the same for all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from llmc.ir.model import Model

SHARED = -1
"""Label of an element that depends on no token: a weight, a constant."""

Label = Tensor | None
"""int64 labels in the shape of the value; None where all of it is shared."""


class Mixes(Exception):
    """An op brings two tokens together; the text says how.

    A signal between the rules and the walk over the graph, which turns it into `UnsupportedModel`.
    """


class Labels:
    """What is known of the nodes of a graph at concrete sizes: the labels of tensors, the numbers that sizes are."""

    def __init__(self, model: Model, tokens: int, rows: int) -> None:
        """A run with `tokens` tokens in the step and `rows` rows of logits asked for."""
        self.model = model
        self.of: dict[fx.Node, Label] = {}
        """Labels of the tensor nodes visited so far."""
        self.several: dict[fx.Node, Sequence[Tensor]] = {}
        """Labels of the results of the nodes that have several."""
        self.sizes: dict[fx.Node, int] = {}
        """The nodes that are sizes, as numbers."""
        places = {"tokens": tokens, "positions": tokens, "slots": tokens, "rows": rows}
        self._symbols = {
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
            return int(expression.subs({symbol: self._symbols[str(symbol)] for symbol in expression.free_symbols}))
        assert isinstance(size, int), f"expected a size, got {size!r}"
        return size

    def counts_tokens(self, size: object) -> bool:
        """Whether a size (a number, a SymInt, or the node of one) depends on how many tokens or rows the step has."""
        value = size.meta.get("val") if isinstance(size, fx.Node) else size
        return isinstance(value, torch.SymInt) and any(str(s) in self._symbols for s in value.node.expr.free_symbols)

    def token_dims(self, node: fx.Node) -> list[int]:
        """The dimensions of a tensor node whose size depends on how many tokens or rows the step has."""
        return [dim for dim, size in enumerate(node.meta["val"].shape) if self.counts_tokens(size)]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The concrete sizes of a tensor node."""
        return tuple(self.concrete(size) for size in node.meta["val"].shape)

    def label(self, value: object) -> Label:
        """The labels of an argument; None for what is no tensor or is shared."""
        return self.of.get(value) if isinstance(value, fx.Node) else None

    def full(self, value: object) -> Tensor:
        """The labels of a tensor argument, spelled out where it is shared."""
        assert isinstance(value, fx.Node), f"expected a tensor, got {value!r}"
        label = self.of.get(value)
        return torch.full(self.shape(value), SHARED) if label is None else label


def join(*labels: Tensor) -> Tensor:
    """Labels of a pointwise result: broadcast, shared yields to a token, two different tokens do not meet."""
    result = labels[0]
    for label in labels[1:]:
        a, b = torch.broadcast_tensors(result, label)
        clash = (a != b) & (a != SHARED) & (b != SHARED)
        if bool(clash.any()):
            place = tuple(clash.nonzero()[0])
            raise Mixes(f"it combines tokens {int(a[place])} and {int(b[place])}")
        result = torch.maximum(a, b)
    return result


def within(label: Tensor, dims: list[int]) -> Tensor:
    """Labels of a reduction over `dims`, kept with size 1: all that is reduced must be of one token."""
    if not dims:
        return label
    high = label.amax(dims, keepdim=True)
    low = torch.where(label == SHARED, high, label).amin(dims, keepdim=True)
    if not torch.equal(high, low):
        place = tuple((high != low).nonzero()[0])
        raise Mixes(f"it reduces over tokens {int(low[place])} and {int(high[place])}")
    return high
