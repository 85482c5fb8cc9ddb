"""The accuracy of several engines side by side: their logits on a text against those of the source in float32."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmc.accuracy import Tally, eager_logits, windows
from llmc.errors import BadOption

WINDOW, WINDOWS = 256, 8
"""Tokens of a window, each of which begins with an empty cache; windows of the text that are compared at most."""

Logits = npt.NDArray[np.float32]


def compare(
    text: Path, source: Path, engines: Sequence[Callable[[Sequence[int]], Logits | None]]
) -> list[dict[str, float] | None]:
    """For each engine, given as what its logits [T, V] of a window are, how exact it is; None if it gives no logits.

    Raises BadOption if the Hugging Face directory `source` has no tokenizer, and for a text of no two tokens.
    """
    pieces = windows(tokenized(text, source), WINDOW, WINDOWS)
    if not pieces:
        raise BadOption(f"accuracy: {text} has fewer than two tokens")
    reference_of = eager_logits(source)
    tallies: list[Tally | None] = [Tally() for _ in engines]
    for tokens in pieces:
        reference = reference_of(tokens)
        for place, logits_of in enumerate(engines):
            tally = tallies[place]
            logits = None if tally is None else logits_of(tokens)
            if tally is None or logits is None:
                tallies[place] = None
            else:
                tally.add(reference[:-1], logits[:-1], tokens[1:])
    return [None if tally is None else asdict(tally.result()) for tally in tallies]


def tokenized(text: Path, source: Path) -> list[int]:
    """The token ids of a text by the tokenizer of a Hugging Face directory. Raises BadOption if it has none."""
    from tokenizers import Tokenizer

    file = source / "tokenizer.json"
    if not file.is_file():
        raise BadOption(f"accuracy: {source} has no tokenizer.json, so a text has no tokens; leave --accuracy out")
    tokens: list[int] = Tokenizer.from_file(str(file)).encode(text.read_text("utf-8"), add_special_tokens=False).ids
    return tokens
