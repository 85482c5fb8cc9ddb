"""The accuracy of engines side by side, on a tiny model whose own logits are the reference."""

from pathlib import Path

import numpy as np
import pytest

from llmc.accuracy import eager_logits
from llmc.bench.exactness import WINDOW, compare, tokenized
from llmc.errors import BadOption


@pytest.fixture
def source(tiny_source: Path) -> Path:
    """The tiny model with a tokenizer of three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["u", "a", "b"])}, unk_token="u"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tiny_source / "tokenizer.json"))
    return tiny_source


def test_a_text_needs_a_tokenizer(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b c")
    assert tokenized(text, source) == [1, 2, 0]
    with pytest.raises(BadOption, match=r"no tokenizer\.json"):
        tokenized(text, tmp_path)
    text.write_text("a")
    with pytest.raises(BadOption, match="fewer than two tokens"):
        compare(text, source, [])


def test_engines_are_judged_by_the_source_and_those_without_logits_left_out(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b b " * (WINDOW // 4))
    exact = eager_logits(source)
    silent, same, flat = compare(
        text, source, [lambda tokens: None, exact, lambda tokens: np.zeros((len(tokens), 64), np.float32)]
    )
    assert silent is None
    assert same is not None and flat is not None
    assert same["kl"] == 0.0
    assert same["top1"] == 1.0
    assert same["perplexity"] == same["reference_perplexity"]
    assert flat["perplexity"] == pytest.approx(64.0)
    assert flat["kl"] > 0
