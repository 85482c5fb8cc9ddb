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
        changes = 0
        for node in model.calls():
            if not node.users or not isinstance(node.meta["val"], torch.Tensor):
                continue
            if _starts(node, units):
                units[node] = Unit(node.args[0], 0)  # type: ignore[arg-type]
            elif any(source in units for source in _operands(node)):
                kind: Kind = "exact" if is_movement(node) else "reassociating"
                site = Site(model, mode, node)
                changes += exchange(self.name, site, lambda site: without_unit(site, units), kind, prover)
        model.graph.eliminate_dead_code()
        return changes


def _starts(node: fx.Node, units: dict[fx.Node, Unit]) -> bool:
    """Whether `node` puts a dimension of size 1 before a value that has none yet."""
    if node.target is not aten.unsqueeze.default:
        return False
    return bool(node.args[1] == 0) and node.args[0] not in units


def _operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that `node` reads; for a part of a split value, those that are split."""
    sources = node.all_input_nodes
    if len(sources) == 1 and isinstance(sources[0].meta.get("val"), (tuple, list)):
        return sources[0].all_input_nodes
    return sources
