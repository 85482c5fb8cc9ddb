"""Attention whose scores are bounded, so that its softmax needs no running maximum.

A weight is 2^score over the sum of such weights, whatever power of two all of them are divided by. Where no score
leaves [-90, 90], in units of log 2, no weight, nor the sum over a million keys, leaves fp32's range, and nothing has to
be divided. What eight bits add to a key's norm is within what that leaves. Bounds are read off the program:

* a softcap bounds scores by itself;
* queries and keys that are RMS-normed by head have norms of at most sqrt(D) times the greatest magnitude of the norm's
  weight. RoPE keeps norms where its cos and sin are those of one angle, without a factor.
"""

from collections.abc import Callable, Sequence
from math import sqrt

import torch

from llmc.codegen.regions import Attention, HeadPart, Linear, Region, Rotation, RowRegion

GREATEST = 90.0
"""The bound up to which scores need no maximum, in units of log 2."""
LOG2E = 1.4426950408889634


def score_bound(attention: Attention, regions: Sequence[Region], weight: Callable[[str], torch.Tensor]) -> float | None:
    """The greatest magnitude of a score in units of log 2, if one is known. `weight` reads a weight by its name."""
    if attention.bias != "0":
        return None
    if attention.softcap > 0:
        return attention.softcap * LOG2E
    parts = [part for region in regions if isinstance(region, Linear) for part in region.parts]
    queries = [part for part in parts if part.target is not None and part.target.buffer == attention.query.buffer]
    keys = [part for part in parts if part.role == "k" and part.layer == attention.layer]
    if len(queries) != 1 or len(keys) != 1:
        return None
    norms = [_greatest_norm(part, attention.key_size, regions, weight) for part in (queries[0], keys[0])]
    if norms[0] is None or norms[1] is None:
        return None
    return attention.scale * LOG2E * norms[0] * norms[1] * 1.02  # queries and keys are rounded


def _greatest_norm(
    part: HeadPart, size: int, regions: Sequence[Region], weight: Callable[[str], torch.Tensor]
) -> float | None:
    norm = part.norm
    if norm is None or norm.op != "rms_norm" or norm.bias is not None:
        return None
    if part.rotation is not None and not _keeps_norms(part.rotation, regions):
        return None
    if norm.weight is None:
        return sqrt(size)
    if norm.weight.buffer.place != "weight":
        return None
    return sqrt(size) * float((weight(norm.weight.buffer.name).float() + norm.offset).abs().max())


def _keeps_norms(rotation: Rotation, regions: Sequence[Region]) -> bool:
    """Whether cos and sin are written by just these operations, not by a product with a factor."""
    made = {
        view.buffer: op.op
        for region in regions
        if isinstance(region, RowRegion)
        for op in region.ops
        for view in op.outputs
    }
    return made.get(rotation.cos.buffer) == "cos" and made.get(rotation.sin.buffer) == "sin"
