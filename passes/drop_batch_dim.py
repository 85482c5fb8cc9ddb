"""The trace holds one sequence, tokens [1, S]; a packed step has tokens [T]. This pass removes the dimension of size 1.

A value with the dimension is, in the graph, `unsqueeze(x, dim)` of the value without it. So the pass moves `unsqueeze`
down: `linear(unsqueeze(x, 0), w)` becomes `unsqueeze(linear(x, w), 0)`, and so on, each step typed and proved like a
respelling, until a `select`, `squeeze` or `reshape` takes the dimension away. An op without a rule keeps it.
"""

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from llmc.ir.infer import fake_mode
from llmc.ir.model import Model
from llmc.ir.prove import Kind, Prover
from llmc.ir.rewrite import Rewriter
from llmc.ir.sizes import number
from llmc.passes.canonicalize_exchange import exchange
from llmc.passes.canonicalize_site import Site, aten
from llmc.passes.drop_batch_dim_rules import Unit, is_movement, without_unit


@dataclass(frozen=True)
class DropBatchDim:
    """Remove the batch dimension of size 1 that the trace put before the packed tokens."""

    name: ClassVar[str] = "drop_batch_dim"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Remove it from every value that allows it; return the number of calls changed. One rewrite in all.

        Raises:
            BuildFailed: a call without the dimension does not compute the same.
        """
        if rewriter.stopped:
            return 0
        start = time.perf_counter()
        prover = Prover() if rewriter.prove else None
        total = 0
        while changes := self._sweep(model, prover):  # what is moved past one unsqueeze may meet another
            total += changes
        if total:
            rewriter.record(self.name, model.inputs()[0], 0.0, time.perf_counter() - start)
        return total

    def _sweep(self, model: Model, prover: Prover | None) -> int:
        mode = fake_mode(model.graph)
        units: dict[fx.Node, Unit] = {}
        reshaped: dict[fx.Node, fx.Node] = {}
        changes = 0
        for node in model.calls():
            if not node.users or not isinstance(node.meta["val"], torch.Tensor):
                continue
            site = Site(model, mode, node)
            if any(source in units for source in _operands(node)):
                kind: Kind = "exact" if is_movement(node) else "reassociating"
                changes += exchange(self.name, site, lambda site: without_unit(site, units), kind, prover)
            elif node.target is aten.unsqueeze.default and node.args[1] == 0:
                units[node] = Unit(node.args[0], 0)  # type: ignore[arg-type]
            elif node.target is aten.reshape.default and number(node.meta["val"].shape[0]) == 1:
                whole = _unsqueezed(site)
                units[whole] = Unit(whole.args[0], 0)  # type: ignore[arg-type]
                reshaped[whole] = node
                node.replace_all_uses_with(whole)
        for whole, node in reshaped.items():
            whole.replace_all_uses_with(node)
        model.graph.eliminate_dead_code()
        return changes


def _unsqueezed(site: Site) -> fx.Node:
    """A reshape to [1, ...] as one that leaves out the dimension of size 1, and `unsqueeze`."""
    shape: list[object] = list(site["shape"])
    return site.call(aten.unsqueeze.default, site.call(aten.reshape.default, site["self"], shape[1:]), 0)


def _operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that `node` reads; for a part of a split value, those that are split."""
    sources = node.all_input_nodes
    if len(sources) == 1 and isinstance(sources[0].meta.get("val"), (tuple, list)):
        return sources[0].all_input_nodes
    return sources
