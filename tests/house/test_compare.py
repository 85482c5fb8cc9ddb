"""The comparison of whole models passes what is right, stops what is wrong, and says by how much."""

from functools import partial
from pathlib import Path

import pytest
import torch

from llmc.compare import FLOOR, compare, source_module
from llmc.errors import NumericsGateFailed

VOCABULARY = 258


@pytest.fixture(scope="module")
def eager(tiny_model: Path) -> torch.nn.Module:
    return source_module(tiny_model, torch.float32)


def test_a_model_that_computes_the_same_passes(tiny_model: Path, eager: torch.nn.Module) -> None:
    found = compare(
        lambda tokens: eager(tokens).logits.detach(), partial(source_module, tiny_model), torch.float32, VOCABULARY
    )
    assert found.tokens == 1 + 7 + 33 + 64
    assert found.error == found.eager_error > 0
    assert found.limit > 2 * found.eager_error
    assert (found.top1, found.passed) == (1.0, True)
    assert abs(found.kl) < 1e-9
    found.check("tiny")


@pytest.mark.parametrize(
    "change",
    [lambda logits: logits * (1 + 10 * FLOOR), lambda logits: logits.roll(1, -1), lambda logits: logits * torch.nan],
    ids=["scaled by a hair", "shifted by one token", "not a number"],
)
def test_a_model_that_computes_something_else_does_not_pass(tiny_model: Path, eager, change) -> None:
    found = compare(
        lambda tokens: change(eager(tokens).logits.detach()),
        partial(source_module, tiny_model),
        torch.float32,
        VOCABULARY,
    )
    assert not found.passed
    with pytest.raises(
        NumericsGateFailed, match=r"tiny: logits differ from the source by .*; find the first bad rewrite"
    ):
        found.check("tiny")


def test_sequences_longer_than_the_context_are_left_out(tiny_model: Path, eager: torch.nn.Module) -> None:
    found = compare(
        lambda tokens: eager(tokens).logits.detach(), partial(source_module, tiny_model), torch.float32, VOCABULARY, 33
    )
    assert found.tokens == 1 + 7 + 33
