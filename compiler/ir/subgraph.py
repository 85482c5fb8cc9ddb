"""The part of a graph between some inputs and some outputs."""

from collections.abc import Sequence

import torch
from torch import fx
from torch._ops import OpOverload

from llmc.errors import InvalidGraph
from llmc.ir.model import Origin


def has_side_effects(node: fx.Node) -> bool:
    """Whether `node` writes to one of its arguments."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def extract(inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> fx.Graph:
    """A new graph that computes `outputs` from `inputs`, a tuple of them; nodes keep name and `meta["val"]`.

    Its placeholders are the inputs, then the symbolic sizes that the subgraph meets: sizes are known wherever they are
    needed, so they end the subgraph like inputs.

    Raises `InvalidGraph` when the subgraph reaches any other placeholder, or an op with side effects.
    """
    begin = set(inputs)
    sizes: list[fx.Node] = []
    found: set[fx.Node] = set()
    stack = [node for node in outputs if node not in begin]
    if len(stack) < len(outputs):
        raise InvalidGraph(f"{_names(outputs)}: an output is also an input; leave it out of the outputs")
    while stack:
        node = stack.pop()
        if node in begin or node in found or node in sizes:
            continue
        if isinstance(node.meta.get("val"), (torch.SymInt, int)) and node not in outputs:
            sizes.append(node)
            continue
        if node.op != "call_function":
            raise InvalidGraph(
                f"{_names(outputs)}: computed from {node.name}, which is not among the inputs {_names(inputs)}"
            )
        if has_side_effects(node):
            raise InvalidGraph(f"{_names(outputs)}: {node.name} ({node.target}) has side effects")
        found.add(node)
        stack.extend(node.all_input_nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in [*dict.fromkeys(inputs), *sorted(sizes)]:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta["val"] = node.meta["val"]
    for node in sorted(found):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return graph


def dependants(inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes between the first output and the last input that are computed from an output, in order.

    What replaces the outputs can only stand after the last input, so these must move behind it.
    """
    reached: set[fx.Node] = set(outputs)
    moved: list[fx.Node] = []
    if not inputs:
        return moved
    last, node = max(inputs), min(outputs)
    while node is not last and node < last:
        node = node.next
        if node not in reached and any(source in reached for source in node.all_input_nodes):
            reached.add(node)
            moved.append(node)
    return moved


def merged_origin(origins: Sequence[Origin]) -> Origin:
    """One origin for all: the common part of the module paths, then what differs, `layers.0.attn.{q_proj,k_proj}`."""
    modules = list(dict.fromkeys(origin.module for origin in origins))
    sources = {origin.source for origin in origins}
    source = sources.pop() if len(sources) == 1 else ""
    if len(modules) == 1:
        return Origin(modules[0], source)
    split = [module.split(".") for module in modules]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    rest = [".".join(parts[len(common) :]) for parts in split]
    return Origin(".".join([*common, "{" + ",".join(rest) + "}"]) if all(rest) else ".".join(common), source)


def _names(nodes: Sequence[fx.Node]) -> str:
    return ", ".join(node.name for node in nodes)
