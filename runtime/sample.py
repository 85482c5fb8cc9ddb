"""Choose the next token from a row of logits.

The processors and their order are those of Hugging Face's `generate`: repetition penalty, temperature, top-k, top-p,
min-p. All arithmetic is in float64, a request draws one number per token from a generator of its own, and so a seed
gives the same tokens in every batch, as far as the logits are the same.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from llmc.errors import BadRequest, NumericsGateFailed

Row = npt.NDArray[np.float32] | npt.NDArray[np.float64]
"""[V] logits."""

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
_FIRST_CANDIDATES = 1024
"""Likeliest tokens that top-p sorts first; it sorts more only where these do not reach its probability."""


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt, and when to stop. Every value is checked: BadRequest names the wrong one."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 takes the likeliest token; otherwise logits are divided by it before sampling."""
    top_k: int = 0
    """Sample among the k likeliest tokens (more if several tie for the last place); 0 is off."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together reach this probability; 1 is off."""
    min_p: float = 0.0
    """Leave out tokens less likely than this times the likeliest; 0 is off."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and of the text so far become less likely, also at temperature 0; 1 is off."""
    seed: int | None = None
    """The same seed gives the same tokens; None draws one."""
    stop: tuple[str, ...] = ()
    """End before the first of these texts; it is not part of the result."""
    stop_token_ids: tuple[int, ...] = ()
    """End at any of these tokens, as at the model's own end tokens."""
    ignore_eos: bool = False
    """Go on after the model's own end tokens."""
    logprobs: int | None = None
    """Report the log-probability of each token and of so many of the likeliest; None reports nothing."""

    def __post_init__(self) -> None:
        _check_integer("max_new_tokens", self.max_new_tokens, 1, 1 << 40)
        _check_number("temperature", self.temperature, 0.0, 1e6)
        _check_integer("top_k", self.top_k, 0, 1 << 40)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 1e-6, 1e6)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, (1 << 64) - 1)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _check_tuple("stop", self.stop, str)
        _check_tuple("stop_token_ids", self.stop_token_ids, int)
        if len(self.stop) > MAX_STOPS or any(not 0 < len(text) <= MAX_STOP_CHARACTERS for text in self.stop):
            raise BadRequest(f"stop: at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters are allowed")


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a chosen token under the model's own distribution, before any processor."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their log-probabilities, likeliest first."""


class Choose(Protocol):
    """Native code that chooses as a `Sampler` does."""

    def __call__(self, logits: Row, params: SamplingParams, seen: npt.NDArray[np.bool_], uniform: float) -> int:
        """The next token given its [V] logits, or -1 if they are not numbers.

        `seen` [V] marks the tokens that are penalised, none if it is empty; `uniform`, from 0 to 1, is drawn with.
        """


@runtime_checkable
class Chooser(Protocol):
    """A program that may bring native code for choosing tokens."""

    choose: Choose | None


class Sampler:
    """Chooses the tokens of one request."""

    def __init__(
        self, params: SamplingParams, vocab_size: int, prompt: Iterable[int] = (), choose: Choose | None = None
    ) -> None:
        """`choose` takes the place of numpy, except for the likeliest token of all, which numpy finds faster."""
        self.params = params
        self._native = choose
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._drawn = np.zeros(0)
        """Numbers that were drawn and not used yet."""
        self._seen = np.zeros(vocab_size if params.repetition_penalty != 1.0 else 0, np.bool_)
        for token in prompt:
            self._remember(token)

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """[V] the tokens that are penalised so far; none without a penalty."""
        return self._seen

    def uniforms(self, count: int) -> npt.NDArray[np.float64]:
        """[count] the numbers with which the next tokens are drawn, where they are chosen elsewhere; none if the
        likeliest are taken. They are used up by `take`."""
        if not self.params.temperature:
            return np.zeros(0)
        if count > len(self._drawn):
            self._drawn = np.concatenate([self._drawn, self._random.random(count - len(self._drawn))])
        return self._drawn[:count]

    def take(self, token: int) -> None:
        """A token was chosen elsewhere, with the next of `uniforms`."""
        self._drawn = self._drawn[1:]
        self._remember(token)

    def choose(self, logits: Row) -> int:
        """The next token, given its [V] logits. Raises NumericsGateFailed if they are not numbers."""
        if not self.params.temperature and not self._seen.size:
            token = int(logits.argmax())
            _check_finite(logits[token])
            return token
        uniform = float(self.uniforms(1)[0]) if self.params.temperature else 0.0
        if self._native is not None:
            token = self._native(logits, self.params, self._seen, uniform)
            if token < 0:
                _check_finite(logits.max())
                raise AssertionError(f"sample: native code chose token {token} among finite logits")
        else:
            scores = process(logits, self.params, self._seen)
            token = _draw(scores, uniform) if self.params.temperature else int(np.argmax(scores))
        self.take(token)
        return token

    def _remember(self, token: int) -> None:
        if self._seen.size:
            self._seen[token] = True


def _draw(scores: Row, uniform: float) -> int:
    """Sample by inverting the cumulative distribution at a number from 0 to 1."""
    candidates = np.flatnonzero(scores > -np.inf)
    cumulative = np.cumsum(np.exp(scores[candidates] - scores[candidates].max()))
    at = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return int(candidates[min(int(at), len(candidates) - 1)])


def process(logits: Row, params: SamplingParams, seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """[V] float64 scores after all processors that are on; tokens that are ruled out have minus infinity.

    Scores are relative: only their differences mean something. `seen` [V] marks the tokens that are penalised. With
    temperature 0 only the repetition penalty applies. Raises NumericsGateFailed if the logits are not numbers.
    """
    scores: npt.NDArray[np.float64] = logits.astype(np.float64)
    _check_finite(scores.max())
    if params.repetition_penalty != 1.0:
        penalised = scores[seen]
        penalty = params.repetition_penalty
        scores[seen] = np.where(penalised < 0, penalised * penalty, penalised / penalty)
    if not params.temperature:
        return scores
    scores -= scores.max()
    with np.errstate(over="ignore"):
        scores /= params.temperature
    if 0 < params.top_k < scores.size:
        scores[scores < np.partition(scores, -params.top_k)[-params.top_k]] = -np.inf
    if params.top_p < 1.0:
        scores[_outside_top_p(scores, params.top_p)] = -np.inf
    if params.min_p > 0.0:
        scores[np.exp(scores) < params.min_p] = -np.inf
    return scores


def logprobs_of(logits: Row, token: int, count: int) -> TokenLogprobs:
    """Log-probabilities of `token` and of the `count` likeliest tokens under [V] logits, ties by token id."""
    scores = logits.astype(np.float64)
    _check_finite(scores.max())
    highest = scores.max()
    scores -= highest + math.log(np.exp(scores - highest).sum())
    count = min(count, scores.size)
    candidates = np.flatnonzero(scores >= np.partition(scores, -count)[-count]) if count else np.zeros(0, np.int64)
    likeliest = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
    return TokenLogprobs(token, float(scores[token]), tuple((int(i), float(scores[i])) for i in likeliest))


def _outside_top_p(scores: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.bool_]:
    """The tokens that, with all less likely ones, have a probability of at most 1 - top_p; never the likeliest."""
    weights = np.exp(scores)
    total = weights.sum()
    outside = np.ones(scores.size, np.bool_)
    count = min(_FIRST_CANDIDATES, scores.size)
    while True:
        some = np.argpartition(scores, -count)[-count:] if count < scores.size else np.arange(scores.size)
        ranked = some[np.argsort(-scores[some], kind="stable")]
        before = np.cumsum(weights[ranked]) - weights[ranked]
        inside = before < top_p * total
        if count == scores.size or not inside[-1]:
            outside[ranked[inside]] = False
            outside[ranked[0]] = False
            return outside
        count = min(count * 8, scores.size)


def _check_finite(largest: np.floating[Any]) -> None:
    if not math.isfinite(largest):
        raise NumericsGateFailed(
            f"sample: the largest logit is {largest}, expected a number; compile the model with another dtype"
        )


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{name}: expected an integer from {low} to {high}, found {_brief(value)}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"{name}: expected a number from {low:g} to {high:g}, found {_brief(value)}")


def _check_tuple(name: str, values: Sequence[object], kind: type) -> None:
    if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
        raise BadRequest(f"{name}: expected a tuple of {kind.__name__}, found {_brief(values)}")


def check_token_ids(tokens: Iterable[object], vocab_size: int, where: str) -> list[int]:
    """`tokens` as a list of int. Raises BadRequest for what is no token of the model."""
    checked: list[int] = []
    for index, token in enumerate(tokens):
        try:
            value = operator.index(token)  # type: ignore[arg-type]
        except TypeError:
            value = -1
        if isinstance(token, bool) or not 0 <= value < vocab_size:
            raise BadRequest(
                f"{where}: token {index} is {_brief(token)}, expected an integer from 0 to {vocab_size - 1}"
            )
        checked.append(value)
    return checked


def _brief(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "an integer beyond 64 bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
