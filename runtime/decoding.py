"""What the token loop asks of a program that chooses tokens by itself, several before the host looks at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from llmc.runtime.program import Batch, Program
from llmc.runtime.sample import SamplingParams, TokenLogprobs

MOST_ENDS = 8
"""A sequence with more end tokens than this is continued by the host."""


@dataclass(frozen=True)
class Continuation:
    """A sequence all of whose tokens but the last are in the cache, and how its next ones are chosen."""

    token: int
    """Its last one."""
    position: int
    """Where that is, counted from 0."""
    blocks: Sequence[int]
    """Its block table, with room for all tokens that it may come to have."""
    params: SamplingParams
    """How tokens are chosen. What it says of when to stop is in `ends` and `remaining`, or the host's matter."""
    seen: npt.NDArray[np.bool_]
    """[V] the tokens that are penalised so far, or none without a penalty."""
    uniforms: npt.NDArray[np.float64]
    """Numbers from 0 to 1, one for each token that may be chosen before the host looks, and more for those after, so
    that a program can go on meanwhile; none at temperature 0."""
    ends: tuple[int, ...]
    """Tokens after which it ends, at most `MOST_ENDS`."""
    remaining: int
    """How many tokens it may still get, at least 1."""


@dataclass(frozen=True)
class Continued:
    """What was chosen for a sequence."""

    tokens: list[int]
    logprobs: list[TokenLogprobs]
    """Of each token, if they were asked for."""

    def at(self, step: int) -> tuple[int, TokenLogprobs | None]:
        """One of the tokens, counted from 0."""
        return self.tokens[step], self.logprobs[step] if self.logprobs else None


@runtime_checkable
class Decoder(Program, Protocol):
    """A program that can choose tokens."""

    decode_steps: int
    """Tokens that a sequence gets at a time; 0 if this program cannot choose."""

    def decode(self, continuations: Sequence[Continuation]) -> list[Continued]:
        """The next tokens of each sequence: `decode_steps`, fewer where it ends or may get no more.

        They are chosen as `llmc.runtime.sample.Sampler` does from the same numbers. K and V of all but the last are in
        the cache then. Raises NumericsGateFailed if logits are not numbers.
        """

    def step_and_choose(self, batch: Batch, continuations: Sequence[Continuation]) -> list[Continued]:
        """Run one step as `step` does, and choose a token from each of the rows of logits that it would return.

        There is a continuation for each row, with one token remaining. Raises NumericsGateFailed as `decode` does.
        """
