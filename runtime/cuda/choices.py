"""How the tokens of sequences are chosen on the device, as arrays of a step, and what was chosen, as it is read there.

Numbers that are no integers are the bits of float64. By sequence, unless said otherwise:

temperatures, top_ks, top_ps, min_ps, penalties: see `llmc.runtime.sample.SamplingParams`.
seen: the tokens that are penalised, a bit each.
logprobs: how many of the likeliest tokens are reported; `NOTHING` for no report.
uniforms: the number that each token is drawn with.
ends: tokens after which it ends. remaining: how many it may still get. made: how many it got. horizon (one number): how
many it gets at most before the host looks.
chosen: its tokens; `NOTHING` where there is none, `NOT_A_NUMBER` where the largest logit was not finite.
ranked, totals: of each token that is reported its rank and those of the likeliest (see `library/ranking.py` of the
kernels), and the sum of e^(logit - largest).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from llmc.errors import NumericsGateFailed
from llmc.runtime.cuda.step_arrays import Shape
from llmc.runtime.decoding import MOST_ENDS, Continuation, Continued
from llmc.runtime.sample import MAX_LOGPROBS, TokenLogprobs

STEPS = 8
"""Tokens that each sequence of a batch gets before the host looks at them."""
NOTHING, NOT_A_NUMBER = -1, -2
LARGE = ("seen", "ranked", "totals")
"""Arrays that are copied only where they are used."""

Array = np.ndarray[Shape, np.dtype[np.int64]]


def shapes(sequences: int, vocabulary: int) -> dict[str, Shape]:
    """The arrays for so many sequences."""
    numbers = ("temperatures", "top_ks", "top_ps", "min_ps", "penalties", "logprobs", "remaining", "made")
    return {
        **dict.fromkeys(numbers, (sequences,)),
        "uniforms": (sequences, STEPS),
        "chosen": (sequences, STEPS),
        "ends": (sequences, MOST_ENDS),
        "horizon": (1,),
        "seen": (sequences, -(-vocabulary // 64)),
        "ranked": (sequences, STEPS, 1 + MAX_LOGPROBS),
        "totals": (sequences, STEPS),
    }


def fill(arrays: Mapping[str, Array], continuations: Sequence[Continuation], block_size: int) -> list[str]:
    """What sequences go on from, and how; the large arrays that must be copied too."""
    for name in ("temperatures", "top_ks", "top_ps", "min_ps", "penalties", "remaining", "made", "uniforms"):
        arrays[name][...] = 0
    for name in ("chosen", "ends", "logprobs"):
        arrays[name][...] = NOTHING
    arrays["horizon"][...] = STEPS
    for row, given in enumerate(continuations):
        place, offset = divmod(given.position, block_size)
        arrays["tokens"][row] = given.token
        arrays["positions"][row] = given.position
        arrays["slots"][row] = given.blocks[place] * block_size + offset
        arrays["lengths"][row] = given.position + 1
        arrays["blocks"][row, : len(given.blocks)] = given.blocks
        params = given.params
        arrays["temperatures"].view(np.float64)[row] = params.temperature
        arrays["top_ks"][row] = params.top_k
        arrays["top_ps"].view(np.float64)[row] = params.top_p
        arrays["min_ps"].view(np.float64)[row] = params.min_p
        arrays["penalties"].view(np.float64)[row] = params.repetition_penalty if given.seen.size else 1.0
        if given.seen.size:
            arrays["seen"][row] = marks(given.seen)
        if params.logprobs is not None:
            arrays["logprobs"][row] = params.logprobs
        arrays["ends"][row, : len(given.ends)] = given.ends
        arrays["remaining"][row] = given.remaining
    fill_uniforms(arrays["uniforms"], continuations)
    return ["seen"] if any(given.seen.size for given in continuations) else []


def fill_uniforms(array: Array, continuations: Sequence[Continuation]) -> None:
    """The numbers that the next tokens are drawn with."""
    for row, given in enumerate(continuations):
        numbers = given.uniforms[:STEPS]
        array.view(np.float64)[row, : len(numbers)] = numbers


def marks(seen: npt.NDArray[np.bool_]) -> Array:
    """[V / 64, rounded up] a bit for each of [V] tokens, the first in the lowest bit of the first number."""
    bits = np.packbits(seen, bitorder="little")
    whole = np.zeros(-(-seen.size // 64) * 8, np.uint8)
    whole[: bits.size] = bits
    return whole.view("<i8").astype(np.int64)


def rules_out(given: Continuation, vocabulary: int) -> bool:
    """Whether tokens are ruled out before one is drawn."""
    params = given.params
    limited = 0 < params.top_k < vocabulary or params.top_p < 1 or params.min_p > 0
    return params.temperature > 0 and limited


def wanted(continuations: Sequence[Continuation]) -> list[str]:
    """The arrays that tell what was chosen."""
    reported = any(given.params.logprobs is not None for given in continuations)
    return ["chosen", "ranked", "totals"] if reported else ["chosen"]


def read(arrays: Mapping[str, Array], continuations: Sequence[Continuation], vocabulary: int) -> list[Continued]:
    """What was chosen. Raises NumericsGateFailed if logits were not numbers."""
    chosen = arrays["chosen"][: len(continuations)]
    if (chosen == NOT_A_NUMBER).any():
        raise NumericsGateFailed(
            "sample: the largest logit is not finite, expected a number; compile the model with another dtype"
        )
    made = []
    for row, given in enumerate(continuations):
        tokens: list[int] = chosen[row][chosen[row] != NOTHING].tolist()
        reports: list[TokenLogprobs] = []
        if given.params.logprobs is not None:
            count = min(given.params.logprobs, vocabulary)
            totals = arrays["totals"].view(np.float64)[row]
            ranked = arrays["ranked"][row]
            reports = [logprobs_from(ranked[place], float(totals[place]), count) for place in range(len(tokens))]
        made.append(Continued(tokens, reports))
    return made


def logprobs_from(ranked: Array, total: float, count: int) -> TokenLogprobs:
    """The report of a token from [1 + `MAX_LOGPROBS`] ranks, its own and then the likeliest, of which `count` are
    asked for (the first is always there), and the sum of e^(logit - largest)."""
    keys = (ranked >> 32).astype(np.int32)
    logits = (keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(np.float32).astype(np.float64)
    tokens = (0x7FFFFFFF - (ranked & 0xFFFFFFFF)).tolist()
    found = (logits - (logits[1] + math.log(total))).tolist()
    return TokenLogprobs(tokens[0], found[0], tuple(zip(tokens[1 : 1 + count], found[1 : 1 + count], strict=True)))


def following(given: Continuation, tokens: Sequence[int]) -> Continuation | None:
    """What goes on after `tokens`; None if nothing does, or if it takes numbers that the host has yet to draw."""
    remaining = given.remaining - len(tokens)
    if len(tokens) < STEPS or tokens[-1] in given.ends or remaining == 0:
        return None
    uniforms = given.uniforms[len(tokens) :]
    if given.params.temperature and len(uniforms) < min(STEPS, remaining):
        return None
    position = given.position + len(tokens)
    return replace(given, token=tokens[-1], position=position, remaining=remaining, uniforms=uniforms)


def same(known: Sequence[Continuation], asked: Sequence[Continuation]) -> bool:
    """Whether the sequences that go on from where they were are those that are asked for, and go on alike."""
    return len(known) == len(asked) and all(
        (one.token, one.position, one.remaining, one.ends) == (other.token, other.position, other.remaining, other.ends)
        and one.params == other.params
        and np.array_equal(one.uniforms[:STEPS], other.uniforms[:STEPS])
        and list(one.blocks) == list(other.blocks)
        for one, other in zip(known, asked, strict=True)
    )
