"""KL, perplexity and agreement, against torch's own functions; windows of a text."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from llmc.bench.exactness import WINDOW, Exactness, compare, windows
from llmc.errors import BadOption


def test_the_sums_are_those_of_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    reference, given = (torch.randn(9, 17, generator=draw) * 3 for _ in range(2))
    tokens = torch.randint(0, 17, (9,), generator=draw)
    found = Exactness()
    for part in (slice(0, 4), slice(4, 9)):
        found.add(tokens[part].tolist(), reference[part].numpy(), given[part].numpy())
    kl = functional.kl_div(given.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean")
    losses = [functional.cross_entropy(given[at], tokens[at + 1]) for at in (0, 1, 2, 4, 5, 6, 7)]
    summary = found.summary()
    assert summary["kl"] == pytest.approx(kl.item(), rel=1e-5)
    assert summary["perplexity"] == pytest.approx(torch.stack(losses).mean().exp().item(), rel=1e-5)
    assert summary["top1"] == (reference.argmax(-1) == given.argmax(-1)).float().mean().item()
    assert summary["positions"] == 9


def test_equal_logits_differ_by_nothing() -> None:
    logits = np.array([[1.0, 2.0], [1e4, -1e4]], np.float32)
    found = Exactness()
    found.add([0, 1], logits, logits)
    assert (found.summary()["kl"], found.summary()["top1"]) == (0.0, 1.0)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["u", "a", "b"])}, unk_token="u"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_text_is_cut_into_whole_windows(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b " * WINDOW)
    with pytest.raises(BadOption, match=r"no tokenizer\.json"):
        windows(text, tmp_path)
    _write_tokenizer(tmp_path)
    assert windows(text, tmp_path) == [[1, 2] * (WINDOW // 2)] * 2
    text.write_text("a b")
    with pytest.raises(BadOption, match="2 tokens; give a text of 256 at least"):
        windows(text, tmp_path)


def test_an_engine_without_logits_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_tokenizer(tmp_path)
    (tmp_path / "text.txt").write_text("a b " * WINDOW)
    logits = np.zeros((WINDOW, 3), np.float32)
    monkeypatch.setattr("llmc.bench.exactness.reference_logits", lambda source, given: [logits] * len(given))
    silent, exact = compare(tmp_path / "text.txt", tmp_path, [lambda tokens: None, lambda tokens: logits])
    assert silent is None
    assert exact == {"kl": 0.0, "perplexity": pytest.approx(3.0), "top1": 1.0, "positions": 2 * WINDOW}
