"""How far the logits of an engine are from those of its source in float32, on the windows of a text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmc.errors import BadOption

WINDOW, WINDOWS = 256, 8
"""Tokens of a window, each of which begins with an empty cache; windows of the text that are compared at most."""

Logits = npt.NDArray[np.float32]


@dataclass
class Exactness:
    """Sums over positions; the last of a window has no next token and counts for no perplexity."""

    kl_sum: float = 0.0
    loss_sum: float = 0.0
    agreed: int = 0
    positions: int = 0
    predicted: int = 0

    def add(self, tokens: Sequence[int], reference: Logits, given: Logits) -> None:
        """Count in the logits [T, V] after each of `tokens`, T of them."""
        wanted, found = _log_softmax(reference), _log_softmax(given)
        self.kl_sum += float((np.exp(wanted) * (wanted - found)).sum())
        self.agreed += int((reference.argmax(-1) == given.argmax(-1)).sum())
        self.positions += len(tokens)
        self.loss_sum -= float(found[np.arange(len(tokens) - 1), list(tokens[1:])].sum())
        self.predicted += len(tokens) - 1

    def summary(self) -> dict[str, float]:
        """Mean KL divergence from float32 in nats, perplexity, share of equal likeliest tokens."""
        return {
            "kl": self.kl_sum / self.positions,
            "perplexity": float(np.exp(self.loss_sum / self.predicted)),
            "top1": self.agreed / self.positions,
            "positions": self.positions,
        }


def windows(text: Path, source: Path) -> list[list[int]]:
    """The first windows of token ids of a text, by the tokenizer of a Hugging Face directory.

    Raises BadOption without a tokenizer, and for a text shorter than a window.
    """
    from tokenizers import Tokenizer

    file = source / "tokenizer.json"
    if not file.is_file():
        raise BadOption(f"accuracy: {source} has no tokenizer.json, so a text has no tokens; leave --accuracy out")
    tokens: list[int] = Tokenizer.from_file(str(file)).encode(text.read_text("utf-8"), add_special_tokens=False).ids
    starts = range(0, min(len(tokens), WINDOW * WINDOWS) - WINDOW + 1, WINDOW)
    if not starts:
        raise BadOption(f"accuracy: {text} has {len(tokens)} tokens; give a text of {WINDOW} at least")
    return [tokens[start : start + WINDOW] for start in starts]


def reference_logits(source: Path, given: Sequence[Sequence[int]]) -> Iterator[Logits]:
    """[T, V] logits of each window by the model in a Hugging Face directory, in float32."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for tokens in given:
        with torch.inference_mode():
            logits: Logits = model(torch.tensor([list(tokens)])).logits[0].numpy()
        yield logits


def compare(
    text: Path, source: Path, engines: Sequence[Callable[[Sequence[int]], Logits | None]]
) -> list[dict[str, float] | None]:
    """For each engine, given as what its logits of a window are, how exact it is; None if it gives no logits."""
    given = windows(text, source)
    sums: list[Exactness | None] = [Exactness() for _ in engines]
    for tokens, reference in zip(given, reference_logits(source, given), strict=True):
        for place, logits_of in enumerate(engines):
            sum_of = sums[place]
            if sum_of is None:
                continue
            logits = logits_of(tokens)
            if logits is None:
                sums[place] = None
            else:
                sum_of.add(tokens, reference, logits)
    return [None if sum_of is None else sum_of.summary() for sum_of in sums]


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted: npt.NDArray[np.float64] = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted
