"""What one step of an artifact must read and compute at least: the counts that measured speeds are held against."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from llmc.errors import InvalidGraph
from llmc.ir.mask import evaluate
from llmc.ir.model import STEP_INPUTS
from llmc.ir.packed_formats import format_named
from llmc.ir.packed_layout import GROUP, TILE
from llmc.ir.serialize import load_graph
from llmc.runtime.artifact import Artifact
from llmc.runtime.weights_file import WeightsHeader

LINEARS = ("aten.linear.default", "llmc.linear_packed.default", "aten.mm.default", "aten.addmm.default")
EXPERTS = ("llmc.moe.default", "llmc.moe_packed.default")
LOOKUPS = ("aten.embedding.default", "llmc.embedding_packed.default", "aten.index_select.default")
ATTENTION = "llmc.cached_attention.default"

ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of an element of a dtype; all others take one."""


@dataclass(frozen=True)
class Costs:
    """Bytes and operations of an artifact's steps.

    Operations are those of products with weights, two for each weight of a token; attention is left out, as usual.
    """

    weight_bytes: int
    """Bytes of weights that a step reads for one token: embedding tables that are only looked up are left out."""
    token_operations: int
    """For each token of a step."""
    row_operations: int
    """For each row of logits: the head, and what comes after rows were selected."""
    format: str
    """How most weights of products are stored: a packed format, or a dtype."""
    layers: tuple[tuple[int, str], ...]
    """For each attention: bytes of K and V of one token, and its mask as a formula."""

    def cache_bytes(self, position: int) -> int:
        """Bytes of cache that the token at `position` must read, by what the masks let it see."""
        return sum(per_token * visible_keys(mask, position) for per_token, mask in self.layers)


def costs_of(artifact: Artifact) -> Costs:
    """Count in the graph of an artifact's program."""
    manifest, header = artifact.manifest, artifact.weights_header
    program = next(files for files in manifest.programs.values() if "graph" in files)
    graph = load_graph(artifact.read(program["graph"])).graph
    selected = _after_rows(graph)
    weight_bytes, totals, formats = 0, {True: 0, False: 0}, dict[str, int]()
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in header.tensors and _is_read(node):
            weight_bytes += int(_bytes(header, node.name) * _share(node, header))
        if str(node.target) in (*LINEARS, *EXPERTS):
            for elements, format in _products(node, header):
                totals[node in selected] += 2 * elements
                formats[format] = formats.get(format, 0) + elements
    masks = [str(node.args[12]) for node in graph.nodes if str(node.target) == ATTENTION]
    sizes = [spec.token_bytes for spec in manifest.kv]
    return Costs(
        weight_bytes=weight_bytes,
        token_operations=totals[False],
        row_operations=totals[True],
        format=max(formats, key=lambda format: formats[format], default="none"),
        layers=tuple(zip(sizes, masks, strict=True))
        if len(masks) == len(sizes)
        else tuple((s, "k <= q") for s in sizes),
    )


def arithmetic_of(format: str) -> str:
    """What products with weights of a format, ours or a peer's, are computed in: "int8", "bfloat16" or "float32"."""
    if format.startswith(("int", "q")):
        return "int8"
    return "bfloat16" if format in ("bf16", "bfloat16") else "float32"


def visible_keys(mask: str, position: int) -> int:
    """How many keys the query at `position` sees, itself included; all of them if the formula needs tables."""
    keys = torch.arange(position + 1)
    try:
        seen = evaluate(mask, torch.tensor(position), keys, torch.tensor(0), [], torch.float32)
    except InvalidGraph:
        return position + 1
    return int(torch.as_tensor(seen).bool().expand(position + 1).sum())


def _after_rows(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on which rows of logits are wanted: they work on those tokens only."""
    found = set[fx.Node]()
    for node in graph.nodes:
        if node.name == STEP_INPUTS[-1] or any(given in found for given in node.all_input_nodes):
            found.add(node)
    return found


def _is_read(weight: fx.Node) -> bool:
    """Whether a step reads all of a weight: a table that is only looked up is not."""
    return any(str(user.target) not in LOOKUPS for user in weight.users)


def _share(weight: fx.Node, header: WeightsHeader) -> float:
    """The share of a weight that one token reads: of experts only the chosen ones."""
    for user in weight.users:
        if str(user.target) in EXPERTS and weight in set(_nodes(user.args[3:7])):
            return _chosen(user) / _experts(user, header)
    return 1.0


def _experts(node: fx.Node, header: WeightsHeader) -> int:
    if str(node.target) == "llmc.moe_packed.default":
        return _integer(node.args[9])
    return int(header.tensors[next(_nodes([node.args[3]])).name].shape[0])


def _chosen(node: fx.Node) -> int:
    """Experts of a token, by the `topk` that chose them; one where the graph does not say."""
    seen, waiting = set[fx.Node](), [argument for argument in node.args[1:3] if isinstance(argument, fx.Node)]
    while waiting:
        at = waiting.pop()
        if str(at.target) == "aten.topk.default":
            return _integer(at.args[1])
        seen.add(at)
        waiting += [given for given in at.all_input_nodes if given not in seen and given.op == "call_function"]
    return 1


def _products(node: fx.Node, header: WeightsHeader) -> Iterator[tuple[int, str]]:
    """(weights that a token meets, their format) of each product that `node` makes."""
    arguments = list(node.args)
    name = str(node.target)
    if name == "llmc.linear_packed.default":
        _, _, _, format, n, k = arguments
        yield _integer(n) * _integer(k), str(format)
        return
    if name == "llmc.moe_packed.default":
        formats = {3: str(arguments[7]), 5: str(arguments[8])}
        for place, format in formats.items():
            first = next(_nodes([arguments[place]]))
            stored = next(iter(format_named(format).parts.values())).shape(1, GROUP)
            yield int(_elements(header, first.name) * TILE * GROUP / prod(stored) * _share(first, header)), format
        return
    for given in _nodes(arguments[1:] if name != "llmc.moe.default" else [arguments[3], arguments[5]]):
        if given.name in header.tensors and len(header.tensors[given.name].shape) >= 2:
            elements = int(_elements(header, given.name) * _share(given, header))
            yield elements, header.tensors[given.name].dtype


def _nodes(arguments: Any) -> Iterator[fx.Node]:  # noqa: ANN401  -- the arguments of a node, however nested
    for argument in arguments:
        if isinstance(argument, fx.Node):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _nodes(argument)
        elif isinstance(argument, Mapping):
            yield from _nodes(argument.values())


def _integer(value: object) -> int:
    assert isinstance(value, int), f"expected a size, found {value!r}"
    return value


def _elements(header: WeightsHeader, name: str) -> int:
    return int(torch.Size(header.tensors[name].shape).numel())


def _bytes(header: WeightsHeader, name: str) -> int:
    return _elements(header, name) * ITEM_BYTES.get(header.tensors[name].dtype, 1)
