"""What has no native form, gathered into regions that torch computes.

Such nodes run one after another as one region, until something native reads a result. A region is computed row by row,
so that a token's result does not depend on what else is in the step; that its rows are one token each is proved on the
graph (`llmc.ir.locality`).
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch
from torch import fx

from llmc.codegen.layout import Axis, Buffer, Domain, Scalar, Value, View
from llmc.codegen.regions import TorchRegion
from llmc.codegen.row_ops import Places
from llmc.codegen.row_runs import origin_of
from llmc.codegen.torch_calls import Layout, TorchCall, spell_call
from llmc.codegen.torch_graph import own_graph
from llmc.codegen.unlowered import Unlowered
from llmc.codegen.view_ops import VIEWS, shape_of
from llmc.errors import UnsupportedModel
from llmc.ir.infer import leaves
from llmc.ir.labels import SHARED
from llmc.ir.locality import token_labels
from llmc.ir.model import Model
from llmc.ir.show import DTYPES, size_letters


class TorchPlaces(Places, Protocol):
    """What the regions ask of the lowering."""

    values: dict[fx.Node, Value | list[Value]]
    """Where each value is, or would be."""

    def stored(self, arg: fx.Node, node: fx.Node) -> View:
        """An argument in a buffer of its own; it is copied if it is not."""


@dataclass
class TorchNodes:
    """The nodes of a graph that torch computes: those that were gathered, and those of regions that were made."""

    model: Model
    known: dict[fx.Node, str] = field(default_factory=dict)
    """Nodes that are known to have no native form where their turn comes, with the reason."""
    gathered: dict[fx.Node, str] = field(default_factory=dict)
    """The nodes of the next region, with the reason; empty for a view that is taken along."""
    edges: dict[fx.Node, None] = field(default_factory=dict)
    """What regions read and what is read of them."""
    _parts: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._letters = size_letters(self.model.graph)

    def reason(self, node: fx.Node) -> str | None:
        """Why torch must compute a node; empty if it only looks at what torch computes, None if it may be native."""
        if node in self.known:
            return self.known[node]
        if any(_is_complex(value) for value in (node, *node.all_input_nodes)):
            return "complex numbers have no native form"
        source = node.args[0] if node.args else None
        looks = node.target in VIEWS or node.target is operator.getitem
        return "" if looks and isinstance(source, fx.Node) and source in self.gathered else None

    def is_done(self, node: fx.Node) -> bool:
        """Whether there is nothing to compute: sizes, and the parts of what torch computes."""
        return isinstance(node.meta["val"], (int, torch.SymInt)) or node in self._parts

    def domain(self, node: fx.Node) -> Domain:
        """The rows that a node works on. Raises `Unlowered` if they are of several kinds."""
        letters = set()
        for item in (node, *node.all_input_nodes):
            for value in leaves(item.meta["val"]):
                sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
                symbols = [size.node.expr.free_symbols for size in sizes if isinstance(size, torch.SymInt)]
                letters |= {self._letters.get(symbol, "") for found in symbols for symbol in found}
        if len(letters) > 1 or not letters <= {"T", "R"}:
            raise Unlowered(node, "works on rows of several kinds at once", final=True)
        return "T" if letters == {"T"} else "R" if letters else ""

    def fits(self, node: fx.Node) -> bool:
        """Whether the node can be in one region with what was gathered."""
        return not self.gathered or self.domain(next(iter(self.gathered))) == self.domain(node)

    def add(self, node: fx.Node, reason: str) -> list[fx.Node]:
        """Gather a node, with the parts of its result; the tensors among them."""
        self.gathered[node] = reason
        if isinstance(node.meta["val"], torch.Tensor):
            return [node]
        self.gathered.update(dict.fromkeys(node.users, ""))
        self._parts.update(node.users)
        return list(node.users)

    def are_read_by(self, nodes: Iterable[fx.Node]) -> bool:
        """Whether any of `nodes` reads what was gathered."""
        return any(source in self.gathered for node in nodes for source in node.all_input_nodes)

    def make(self, places: TorchPlaces) -> tuple[TorchRegion, dict[fx.Node, View], list[fx.Node]]:
        """The region of what was gathered, where its results lie, and the views at its end, which are not part of it.

        Raises `Unlowered` for results that have no place in a native program.
        """
        members, views = self._split(places)
        self.gathered = {}
        self._parts.difference_update(views)
        needed = [node for node in members if any(user not in members for user in node.users)]
        read = [source for node in members for source in node.all_input_nodes if source not in members]
        sources = [node for node in dict.fromkeys(read) if isinstance(node.meta["val"], torch.Tensor)]
        numbers = {node: value for node in sources if isinstance(value := self._source(node, places), Scalar)}
        tensors = [node for node in sources if node not in numbers]
        inputs = [self._read(node, places) for node in tensors]
        outputs = {node: self._new(node, places) for node in needed}
        self.edges.update(dict.fromkeys([*tensors, *needed]))
        first = next(node for node, reason in members.items() if reason)
        domain = self.domain(first)
        module = own_graph(list(members), tensors, numbers, needed, self._letters)
        layouts = tuple(_layout(view, node, self.model) for view, node in zip(inputs, tensors, strict=True))
        results = tuple(_layout(view, node, self.model) for node, view in outputs.items())
        call = TorchCall(domain, layouts, results, module)
        region = TorchRegion(
            name=first.name,
            origin=origin_of(first),
            domain=domain,
            inputs=tuple(inputs),
            outputs=tuple(outputs.values()),
            call=call,
            spelled=spell_call(call),
            reasons=tuple((node.name, reason) for node, reason in members.items() if reason),
            nodes=tuple(node.name for node in members),
        )
        return region, outputs, views

    def check(self) -> None:
        """Raise `Unlowered` unless every region's values are one row a token, in order."""
        if not self.edges:
            return
        tokens, rows = 5, 3
        try:
            labels = token_labels(self.model, tokens, rows)
        except UnsupportedModel as error:
            raise Unlowered(next(iter(self.edges)), str(error), final=True) from error
        for node in self.edges:
            label, axes = labels.get(node), [place for place, size in enumerate(shape_of(node)) if size is None]
            if label is None or not axes:
                continue
            own = torch.arange(label.shape[axes[0]]).reshape([-1 if d == axes[0] else 1 for d in range(label.dim())])
            if not bool(((label == own) | (label == SHARED)).all()):
                raise Unlowered(node, "its rows are not one token each, in order", final=True)

    def _split(self, places: TorchPlaces) -> tuple[dict[fx.Node, str], list[fx.Node]]:
        """What torch must compute, and the views of it that only others read."""
        views: list[fx.Node] = []
        for node in reversed(self.gathered):
            if self.gathered[node] or node in self._parts or node.args[0] not in places.values:
                continue
            several = [] if isinstance(node.meta["val"], torch.Tensor) else list(node.users)
            users = {user for part in several or [node] for user in part.users}
            if users.isdisjoint(self.gathered.keys() - views):
                views += [*reversed(several), node]
        return {node: reason for node, reason in self.gathered.items() if node not in views}, views[::-1]

    def _source(self, node: fx.Node, places: TorchPlaces) -> Value | None:
        return None if self.model.is_weight(node) else places.value(node, node)

    def _read(self, node: fx.Node, places: TorchPlaces) -> View:
        if self.model.is_weight(node):  # as bytes: it may have a dtype that no native operation reads
            size = prod(node.meta["val"].shape) * node.meta["val"].dtype.itemsize
            return View(Buffer(-1, node.name, "", size, "u8", "weight"), (Axis(size, 1),))
        view = places.view(node, node)
        return places.stored(node, node) if view.indirect else view

    def _new(self, node: fx.Node, places: TorchPlaces) -> View:
        if _is_complex(node) or not isinstance(node.meta["val"], torch.Tensor):
            raise Unlowered(node, "is read as what has no place in a native program", final=True)
        try:
            return places.new(node)
        except Unlowered as error:
            raise Unlowered(node, error.reason, final=True) from None


def _is_complex(node: fx.Node) -> bool:
    return any(isinstance(value, torch.Tensor) and value.dtype.is_complex for value in leaves(node.meta["val"]))


def _layout(view: View, node: fx.Node, model: Model) -> Layout:
    """Where a region finds or puts the value of `node`."""
    if not model.is_weight(node):
        axes = tuple((axis.size, axis.stride) for axis in view.axes)
        return Layout(view.buffer.dtype, view.buffer.domain, view.buffer.width, axes, view.offset)
    value = node.meta["val"]
    strides = [prod(value.shape[place + 1 :]) for place in range(value.dim())]
    axes = tuple(zip(map(int, value.shape), strides, strict=True))
    return Layout(DTYPES[value.dtype], "", max(1, value.numel()), axes)


__all__ = ["TorchNodes", "TorchPlaces"]
