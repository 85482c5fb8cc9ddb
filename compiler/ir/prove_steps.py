"""The proof of a packed step: two sequences fed in pieces over a paged cache give what each gives whole.

Run are the first attention layers alone, with everything that leads to them, on the model's real weights: positions,
slots, block tables and masks enter there, and a model of any size is proved in the memory of two layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from llmc.ir.evaluate import ancestors
from llmc.ir.model import Model
from llmc.ir.prove import Disproved

LAYERS = 2
LENGTHS = (7, 5)
"""Tokens of the two sequences."""
PIECES = (((0, 3), (0, 2)), ((3, 4), (2, 5)), ((4, 7), None))
"""What of each sequence enters each step: a prompt in parts, single tokens, and a step of one sequence alone."""
BLOCK_SIZE = 2
BLOCKS = ((5, 1, 6, 3), (0, 4, 2))
"""Where the blocks of each sequence lie."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference relative to the largest element: products of other shapes sum in another order, and two layers
amplify it; a wrong position, mask or slot changes results by their own size."""

Inputs = Mapping[str, Tensor]


def prove_steps(whole: fx.Graph, model: Model) -> float:
    """The largest relative difference between `whole` (tokens [1, S]) and the packed `model`, layer by layer.

    Raises `Disproved` when it is larger than rounding explains.
    """
    expected = whole.find_nodes(op="call_function", target=torch.ops.llmc.masked_attention.default)[:LAYERS]
    found = model.graph.find_nodes(op="call_function", target=torch.ops.llmc.cached_attention.default)[:LAYERS]
    if not expected:
        return 0.0
    weights = _Weights(model)
    generator = torch.Generator().manual_seed(0)
    limit = _vocabulary(whole)
    prompts = [torch.randint(limit, (length,), generator=generator) for length in LENGTHS]
    reference = [
        [out[0].transpose(0, 1) for out in _run(whole, expected, weights, {"tokens": prompt[None]})]
        for prompt in prompts
    ]
    caches = _caches(model)
    worst = 0.0
    for pieces in PIECES:
        inputs, rows = _step(prompts, pieces)
        outputs = _run(model.graph, found, weights, {**inputs, **caches})
        for layer, out in enumerate(outputs):
            for (sequence, start, stop), part in zip(rows, _split(out, rows), strict=True):
                worst = max(worst, _compare(reference[sequence][layer][start:stop], part, layer, start))
    return worst


class _Weights:
    """The weights of a model by placeholder name, each evaluated once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.values: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        if name not in self.values:
            self.values[name] = self.model.weights[name].evaluate()
        return self.values[name]


def _run(graph: fx.Graph, targets: Sequence[fx.Node], weights: _Weights, inputs: Inputs) -> list[Tensor]:
    needed = set().union(*(ancestors(target) for target in targets))
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node not in needed:
                continue
            if node.op == "placeholder":
                name = str(node.target)
                values[node] = inputs[name] if name in inputs else weights.get(node.name)
                continue
            function: Callable[..., Any] = node.target
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = function(*args, **kwargs)
    return [values[target] for target in targets]


def _vocabulary(graph: fx.Graph) -> int:
    """Token ids below this are rows of every table that is read by token."""
    tables = graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default)
    sizes = [int(table.args[0].meta["val"].shape[0]) for table in tables if _is_tokens(table.args[1])]
    return max(min(sizes, default=2), 1)


def _is_tokens(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "placeholder"


def _caches(model: Model) -> dict[str, Tensor]:
    blocks = 1 + max(block for table in BLOCKS for block in table)
    return {
        node.name: torch.zeros(blocks, BLOCK_SIZE, *node.meta["val"].shape[2:], dtype=node.meta["val"].dtype)
        for node in model.inputs()
        if "_cache_" in node.name
    }


def _step(prompts: Sequence[Tensor], pieces: Sequence[tuple[int, int] | None]) -> tuple[dict[str, Tensor], list[Any]]:
    """The inputs of one step, and (sequence, start, stop) of each sequence in it."""
    rows = [(sequence, *piece) for sequence, piece in enumerate(pieces) if piece is not None]
    positions = [torch.arange(start, stop) for _, start, stop in rows]
    tables = [torch.tensor(BLOCKS[sequence]) for sequence, _, _ in rows]
    slots = [
        table[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for table, at in zip(tables, positions, strict=True)
    ]
    ends = torch.tensor([0] + [stop - start for _, start, stop in rows]).cumsum(0)
    width = max(len(table) for table in tables)
    padded = [torch.nn.functional.pad(table, (0, width - len(table))) for table in tables]
    inputs = {
        "tokens": torch.cat([prompts[sequence][start:stop] for sequence, start, stop in rows]),
        "positions": torch.cat(positions),
        "slots": torch.cat(slots),
        "starts": ends,
        "lengths": torch.tensor([stop for _, _, stop in rows]),
        "blocks": torch.stack(padded),
        "rows": torch.zeros(1, dtype=torch.int64),
    }
    return inputs, rows


def _split(out: Tensor, rows: Sequence[Any]) -> Iterator[Tensor]:
    return iter(out.split([stop - start for _, start, stop in rows]))


def _compare(expected: Tensor, found: Tensor, layer: int, start: int) -> float:
    scale = max(expected.abs().max().item(), 1e-30)
    error = (expected - found).abs().max().item() / scale
    allowed = TOLERANCE.get(expected.dtype, 1e-1)
    if not error <= allowed:
        raise Disproved(
            f"attention layer {layer} differs by {error:.2g} of its largest element at position {start} as tokens "
            f"come in pieces, allowed {allowed:.2g}"
        )
    return error
