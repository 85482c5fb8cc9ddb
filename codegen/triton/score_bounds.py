"""Attention whose scores are bounded, so that its softmax needs no running maximum.

A weight is 2^score over the sum of such weights, whatever power of two all of them are divided by. Where no score
leaves [-90, 90], in units of log 2, no weight, nor the sum over a million keys, leaves the range of fp32 and bfloat16,
and nothing has to be divided. What rounding adds to a key's norm is within what that leaves. Bounds are read off the
program:

* a softcap bounds scores by itself;
* queries and keys that are RMS-normed by head have norms of at most sqrt(D) times the greatest magnitude of the norm's
  weight. RoPE keeps norms where its cos and sin are those of one angle for both numbers of a pair, without a factor.

A constant that was calibrated, and not proved, would need each block to be looked at, or the sums in the end, and the
keys to be taken again where it did not hold. It is not done, as it gains nothing that is waited for. With heads of 128
in bfloat16 on sm_90 (`tests/benchmarks/attention_code.py`, with and without `--bounded`), a decode step issues 13.9
instead of 18.4 instructions a key, of the 125 there is time for while the key is read; a prompt issues 21.0 instead of
33.8, in 5 and 8 cycles of its multiprocessor, whose tensor cores take 16. Barriers are the same, 2 and 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch

from llmc.codegen.layout import Buffer, View
from llmc.codegen.regions import Attention, HeadPart, Linear, Region, Rotation, RowOp, RowRegion

GREATEST = 90.0
"""The bound up to which scores need no maximum, in units of log 2."""
LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class ScoreBound:
    """What is known of the scores of an attention."""

    value: float | None
    """Their greatest magnitude in units of log 2, if it is known."""
    why: str
    """What bounds them, or what does not."""

    def maximum_with(self, dtype: str) -> str:
        """Why a softmax over a cache of a dtype has a running maximum; "" where it needs none."""
        if self.value is None:
            return self.why
        if self.value > GREATEST:
            return f"weights up to 2^{self.value:.0f}, more than 2^{GREATEST:.0f}, by {self.why}"
        if dtype not in ("float32", "bfloat16"):
            return f"weights are fp16 for {dtype} keys and values, and up to 2^{self.value:.1f}, by {self.why}"
        return ""

    def note(self, dtype: str) -> str:
        """The same for reading."""
        if reason := self.maximum_with(dtype):
            return f"running maximum: {reason}"
        return f"no running maximum: weights up to 2^{self.value:.1f}, by {self.why}"


def score_bound(attention: Attention, regions: Sequence[Region], weight: Callable[[str], torch.Tensor]) -> ScoreBound:
    """What bounds the scores of a region of `regions`. `weight` reads a weight by its name."""
    if attention.bias != "0":
        return ScoreBound(None, "scores have a bias")
    if attention.softcap > 0:
        return ScoreBound(attention.softcap * LOG2E, f"a softcap of {attention.softcap:g}")
    parts = [part for region in regions if isinstance(region, Linear) for part in region.parts]
    queries = [part for part in parts if part.target is not None and part.target.buffer == attention.query.buffer]
    keys = [part for part in parts if part.role == "k" and part.layer == attention.layer]
    if len(queries) != 1 or len(keys) != 1:
        return ScoreBound(None, "queries and keys are not written by one linear each")
    norms: list[float] = []
    for name, part in (("queries", queries[0]), ("keys", keys[0])):
        found = _greatest_norm(part, attention.key_size, regions, weight)
        if isinstance(found, str):
            return ScoreBound(None, f"{name} {found}")
        norms.append(found)
    value = attention.scale * LOG2E * norms[0] * norms[1] * 1.02  # queries and keys are rounded
    return ScoreBound(value, f"RMS norms of queries and keys (norms up to {norms[0]:.1f} and {norms[1]:.1f})")


def _greatest_norm(
    part: HeadPart, size: int, regions: Sequence[Region], weight: Callable[[str], torch.Tensor]
) -> float | str:
    """The greatest norm of the vectors of a part, or why there is none."""
    norm = part.norm
    if norm is None or norm.op != "rms_norm" or norm.bias is not None:
        return "have no RMS norm"
    if part.rotation is not None and not _keeps_norms(part.rotation, regions):
        return "are turned by a RoPE that is not seen to keep their norms"
    if norm.weight is None:
        return sqrt(size)
    if norm.weight.buffer.place != "weight":
        return "have a norm whose weight is computed"
    return sqrt(size) * float((weight(norm.weight.buffer.name).float() + norm.offset).abs().max())


def _keeps_norms(rotation: Rotation, regions: Sequence[Region]) -> bool:
    """Whether both numbers of each pair are multiplied with the cos and the sin of one angle, and nothing else: angles
    are those of the first numbers, copied to the second.
    """
    ops = [op for region in regions if isinstance(region, RowRegion) for op in region.ops]

    def written(buffer: Buffer) -> list[RowOp]:
        return [op for op in ops if any(view.buffer == buffer for view in op.outputs)]

    made = written(rotation.cos.buffer) + written(rotation.sin.buffer)
    if [op.op for op in made] != ["cos", "sin"] or made[0].inputs != made[1].inputs:
        return False
    angles = made[0].inputs[0]
    copies = written(angles.buffer) if isinstance(angles, View) else []
    if [op.op for op in copies] != ["copy", "copy"] or copies[0].inputs != copies[1].inputs:
        return False
    first, second = (op.outputs[0] for op in copies)
    return second.offset - first.offset == (1 if rotation.interleaved else rotation.size // 2)
