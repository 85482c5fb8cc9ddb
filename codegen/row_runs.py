"""Row operations one after another as regions: one for each run over the same rows."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from torch import fx

from llmc.codegen.regions import RowOp, RowRegion
from llmc.ir.model import Origin


def row_regions(operations: Iterable[tuple[RowOp, fx.Node]]) -> Iterator[RowRegion]:
    """The regions of operations in order, each with the node that it is of."""
    for domain, run in groupby(operations, key=lambda item: item[0].outputs[0].domain):
        items = list(run)
        first = items[0][1]
        nodes = tuple(dict.fromkeys(node.name for _, node in items))
        yield RowRegion(first.name, origin_of(first), domain, tuple(op for op, _ in items), nodes)


def origin_of(node: fx.Node) -> str:
    """Module path and source line of a node; empty where they are not known."""
    origin = node.meta.get("origin")
    return str(origin) if isinstance(origin, Origin) else ""
