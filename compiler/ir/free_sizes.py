"""Sizes of weights that a proof may make smaller, so that a rewrite of a large model is proved in little memory.

An op works for any size that nothing spells out: `linear(x, w)` has no number that ties it to the rows and columns of
`w`. Both sides of a rewrite are then run with a small prime instead. Sizes that an argument names stay as they are.
"""

from collections.abc import Iterator

import torch
from torch import fx

from llmc.ir.infer import leaves

LARGE = 512
"""Sizes up to this are left alone: they cost little."""

PRIMES = (251, 257, 263, 269, 271, 277, 281, 283)
"""What large sizes become, in order: odd, so that no block fits, and in products unlike any real size."""


def free_sizes(before: fx.Graph, after: fx.Graph) -> dict[int, int]:
    """For each large fixed size of an input that no argument in either graph names, the smaller one to test with."""
    named = {
        number for graph in (before, after) for node in graph.nodes for number in _numbers((node.args, node.kwargs))
    }
    sizes = {
        size
        for node in before.find_nodes(op="placeholder")
        for leaf in leaves(node.meta["val"])
        if isinstance(leaf, torch.Tensor)
        for size in leaf.shape
        if isinstance(size, int) and size > LARGE and size not in named
    }
    return dict(zip(sorted(sizes), PRIMES, strict=False))


def _numbers(value: object) -> Iterator[int | float]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))
    elif isinstance(value, (int, float)):
        yield value
