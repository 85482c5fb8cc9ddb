"""One call for another, inside a tidy pass: type checked, proved, and the old call erased."""

import operator
from collections.abc import Callable, Sequence

from torch import fx

from llmc.errors import BuildFailed, InvalidGraph
from llmc.ir.prove import Disproved, Kind, Prover
from llmc.ir.sizes import same_type
from llmc.ir.subgraph import extract
from llmc.passes.canonicalize_site import Site


def exchange(name: str, site: Site, rule: Callable[[Site], fx.Node | None], kind: Kind, prover: Prover | None) -> bool:
    """Let `rule` respell the call at `site`; return whether it did.

    A replacement of another dtype or size is dropped, and the call left as it is. `prover`, if given, runs both on
    random inputs; calls of the same structure are proved once.

    Raises:
        BuildFailed: the replacement does not compute the same.
    """
    node = site.node
    new = rule(site)
    if new is None or not same_type(new.meta["val"], node.meta["val"]):
        for made in reversed(site.made):
            node.graph.erase_node(made)
        return False
    if prover is not None:
        try:
            prover.prove(*_sides(site, new), kind, site.known)
        except Disproved as disproved:
            where = f"{name} at {node.name} ({node.meta.get('origin')})"
            raise BuildFailed(f"{where}: {node.target} respelled as {new.target}: {disproved}") from disproved
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return True


def _sides(site: Site, new: fx.Node) -> tuple[fx.Graph, fx.Graph]:
    """The call and what replaces it as graphs of the same inputs."""
    made = set(site.made)
    sources = [source for node in site.made for source in node.all_input_nodes if source not in made]
    inputs = list(dict.fromkeys(sources if new in made else [*sources, new]))
    try:
        return _unpacked(extract(inputs, [site.node])), _unpacked(_result(inputs, new))
    except InvalidGraph:  # the replacement drops an input
        inputs = list(dict.fromkeys([*inputs, *site.node.all_input_nodes]))
        return _unpacked(extract(inputs, [site.node])), _unpacked(_result(inputs, new))


def _unpacked(graph: fx.Graph) -> fx.Graph:
    """`graph` returning each part of a call with several results."""
    output = graph.output_node()
    (result,) = output.all_input_nodes
    value = result.meta["val"]
    if not isinstance(value, (list, tuple)):
        return graph
    parts = []
    with graph.inserting_before(output):
        for place, part in enumerate(value):
            parts.append(graph.call_function(operator.getitem, (result, place)))
            parts[-1].meta["val"] = part
    output.args = (tuple(parts),)
    return graph


def _result(inputs: Sequence[fx.Node], new: fx.Node) -> fx.Graph:
    if new not in inputs:
        return extract(inputs, [new])
    graph = fx.Graph()
    copies = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta["val"] = node.meta["val"]
    graph.output((copies[new],))
    return graph
