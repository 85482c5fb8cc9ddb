"""The comparison of whole models passes what is right, stops what is wrong, and says by how much."""

from functools import partial
from pathlib import Path

import pytest
import torch

import llmc
from llmc.compare import FLOOR, ROUNDED_CACHES, Expected, compare_artifact, graph_logits, source_module
from llmc.errors import NumericsGateFailed
from llmc.frontend.hf import from_directory
from llmc.ir.pass_manager import run_passes
from llmc.pipeline import pipeline

VOCABULARY = 258


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> Expected:
    return Expected.of(partial(source_module, tiny_model), torch.float32, VOCABULARY)


@pytest.fixture(scope="module")
def eager(tiny_model: Path) -> torch.nn.Module:
    return source_module(tiny_model, torch.float32)


def test_a_model_that_computes_the_same_passes(expected: Expected, eager: torch.nn.Module) -> None:
    found = expected.compare(lambda tokens: eager(tokens).logits.detach())
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
def test_a_model_that_computes_something_else_does_not_pass(expected: Expected, eager, change) -> None:
    found = expected.compare(lambda tokens: change(eager(tokens).logits.detach()))
    assert not found.passed
    with pytest.raises(NumericsGateFailed, match=r"tiny: logits differ from the source by .*; find the first bad"):
        found.check("tiny")


def test_keys_and_values_in_eight_bits_are_judged_by_divergence(tiny_model: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "tiny.llmc"
    llmc.compile(tiny_model, kv_dtype="int8", program="reference", prove=False).save(artifact)
    found = compare_artifact(artifact, tiny_model)
    assert found.error > found.limit
    assert (found.kl_limit, found.passed) == (ROUNDED_CACHES["int8"], True)


def test_sequences_longer_than_the_context_are_left_out(tiny_model: Path) -> None:
    assert len(Expected.of(partial(source_module, tiny_model), torch.float32, VOCABULARY, 33).true) == 1 + 7 + 33


@pytest.mark.parametrize("rewrites", [0, 5, None], ids=["not at all", "half way", "completely"])
def test_a_graph_is_right_however_far_it_was_compiled(tiny_model: Path, expected: Expected, rewrites) -> None:
    model = from_directory(tiny_model)
    run_passes(model, pipeline(), stop_after=rewrites, prove=False)
    assert expected.compare(graph_logits(model)).passed
