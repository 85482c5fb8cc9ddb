"""What rounding weights costs: a compiled model beside the one it was made of, on a text.

Three numbers say it: the divergence of the distributions over the next token, the perplexity of both on the text, and
how often the likeliest token is the same.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmc.compare import source_module
from llmc.errors import BadRequest

Logits = Callable[[Sequence[int]], npt.NDArray[np.float32]]
"""Token ids of a sequence to logits [T, V] after each of them; `llmc.runtime.session.Session.logits` is one."""

_ROWS = 64
"""Positions whose distributions are compared at once, in fp64."""


@dataclass(frozen=True)
class Accuracy:
    """How far a model is from its reference."""

    tokens: int
    """Positions compared: all of each window but the last."""
    kl: float
    """Mean KL divergence from the reference's distribution to the model's, in nats."""
    perplexity: float
    """Of the model."""
    reference_perplexity: float
    top1: float
    """Share of positions at which both find the same token likeliest."""


@dataclass
class Tally:
    """Sums over positions, window after window."""

    tokens: int = 0
    divergence: float = 0.0
    surprise: float = 0.0
    reference_surprise: float = 0.0
    agreed: int = 0

    def add(self, reference: npt.ArrayLike, given: npt.ArrayLike, following: Sequence[int]) -> None:
        """Add the logits [T, V] of both models at T positions, and the token ids [T] that follow in the text."""
        wanted, found = torch.as_tensor(np.asarray(reference)), torch.as_tensor(np.asarray(given))
        if wanted.shape != found.shape or len(following) != len(wanted):
            shapes = f"{list(wanted.shape)} and {list(found.shape)} for {len(following)} tokens"
            raise BadRequest(f"accuracy: logits {shapes}; expected the same vocabulary and a row for each token")
        targets = torch.tensor(following, dtype=torch.int64)[:, None]
        for start in range(0, len(wanted), _ROWS):
            self._add(wanted[start : start + _ROWS], found[start : start + _ROWS], targets[start : start + _ROWS])

    def _add(self, wanted: Tensor, found: Tensor, targets: Tensor) -> None:
        p, q = wanted.double().log_softmax(-1), found.double().log_softmax(-1)
        self.tokens += len(targets)
        self.divergence += (p.exp() * (p - q)).sum().item()
        self.surprise -= q.gather(1, targets).sum().item()
        self.reference_surprise -= p.gather(1, targets).sum().item()
        self.agreed += int((p.argmax(-1) == q.argmax(-1)).sum())

    def result(self) -> Accuracy:
        """The means. Raises `BadRequest` when nothing was added."""
        if not self.tokens:
            raise BadRequest("accuracy: the text has no token that follows another; use a longer one")
        return Accuracy(
            self.tokens,
            self.divergence / self.tokens,
            float(np.exp(self.surprise / self.tokens)),
            float(np.exp(self.reference_surprise / self.tokens)),
            self.agreed / self.tokens,
        )


def windows(tokens: Sequence[int], length: int, most: int | None = None) -> list[list[int]]:
    """The text's token ids in pieces of `length`, at most so many; a rest of one token is left out."""
    starts = range(0, len(tokens), length)[:most]
    pieces = [list(tokens[start : start + length]) for start in starts]
    return [piece for piece in pieces if len(piece) > 1]


def measure(reference: Logits, given: Logits, pieces: Iterable[Sequence[int]]) -> Accuracy:
    """Compare two models on `pieces` of a text, each of at least two token ids."""
    tally = Tally()
    for piece in pieces:
        tally.add(reference(piece)[:-1], given(piece)[:-1], piece[1:])
    return tally.result()


def eager_logits(model: str | Path) -> Logits:
    """The unquantized reference: a Hugging Face directory or a .gguf file in fp32, run by eager PyTorch."""
    module = source_module(model, torch.float32)

    def run(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            logits = module(torch.tensor([list(tokens)]), use_cache=False).logits[0].float()
        result: npt.NDArray[np.float32] = logits.numpy()
        return result

    return run
