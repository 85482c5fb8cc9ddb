"""How much of a graph is native code, and what is not, with the reason: for the report and for people."""

import re
from collections.abc import Iterable

import torch
from torch import fx

from llmc.codegen.regions import Region, TorchRegion
from llmc.codegen.row_runs import origin_of
from llmc.ir.model import Model

_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def native_share(model: Model, regions: Iterable[Region]) -> dict[str, object]:
    """Facts for the report: `native`, the part of the graph's ops that run as native code, and `torch`, the ops that
    torch runs: name, how often, where (`*` for the numbers of layers) and why. Ops that only go along with one of
    these have no reason and are counted, not listed.
    """
    left = [region for region in regions if isinstance(region, TorchRegion)]
    nodes = {node.name: node for node in model.calls() if _is_op(node)}
    in_torch = {name for region in left for name in region.nodes} & nodes.keys()
    groups: dict[tuple[str, str, str], int] = {}
    for name, reason in (pair for region in left for pair in region.reasons):
        module, _, line = origin_of(nodes[name]).partition(" at ")
        place = " at ".join(part for part in (_LAYER.sub("*", module), line) if part)
        key = str(nodes[name].target).removesuffix(".default"), place, reason
        groups[key] = groups.get(key, 0) + 1
    return {
        "native": 1 - len(in_torch) / max(1, len(nodes)),
        "torch": [
            {"op": op, "origin": place, "reason": reason, "count": count}
            for (op, place, reason), count in groups.items()
        ],
    }


def _is_op(node: fx.Node) -> bool:
    """Whether a node computes; sizes and the parts of results do not."""
    return isinstance(node.target, torch._ops.OpOverload) and not isinstance(node.meta["val"], (int, torch.SymInt))
