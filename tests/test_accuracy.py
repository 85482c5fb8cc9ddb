"""What quantization costs, on a text: how it is measured, and what it may be for a real model."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import model_file

import llmc
from llmc.accuracy import Accuracy, Logits, Tally, eager_logits, measure, windows
from llmc.compiled_model import CompiledModel
from llmc.errors import BadRequest

TEXT = (Path(__file__).parent / "data" / "english.txt").read_text(encoding="utf-8")


def test_a_model_is_as_good_as_itself() -> None:
    logits = torch.randn(100, 11, generator=torch.Generator().manual_seed(0)).numpy()
    tally = Tally()
    tally.add(logits, logits, [3] * 100)
    found = tally.result()
    assert (found.tokens, found.kl, found.top1) == (100, 0.0, 1.0)
    assert found.perplexity == found.reference_perplexity


def test_the_numbers_are_those_of_the_definition() -> None:
    reference, given = np.log([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]), np.log([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]])
    tally = Tally()
    tally.add(reference[:1], given[:1], [1])
    tally.add(reference[1:], given[1:], [2])
    found = tally.result()
    assert found.kl == pytest.approx((0.5 * math.log(2) + 0.25 * math.log(0.5)) / 2)
    assert found.perplexity == pytest.approx((0.5 * 0.6) ** -0.5)
    assert found.reference_perplexity == pytest.approx((0.25 * 0.6) ** -0.5)
    assert found.top1 == 0.5


def test_texts_are_cut_into_windows_and_nothing_is_no_text() -> None:
    assert windows([1, 2, 3, 4, 5, 6, 7], 3) == [[1, 2, 3], [4, 5, 6]]
    assert windows([1, 2, 3, 4, 5], 3, most=1) == [[1, 2, 3]]
    with pytest.raises(BadRequest, match="use a longer one"):
        Tally().result()
    with pytest.raises(BadRequest, match="expected the same vocabulary"):
        Tally().add(np.zeros((2, 3)), np.zeros((2, 4)), [0, 0])


@cache
def source() -> Logits:
    return eager_logits(model_file("smollm2"))


def accuracy(model: CompiledModel) -> Accuracy:
    assert model.session.tokenizer is not None
    pieces = windows(model.session.tokenizer.encode(TEXT), 192, most=2)
    return measure(source(), model.session.logits, pieces)


LARGEST_KL = {"int4": 0.05, "int8": 0.01, "keep": 0.01}
"""In nats; measured 0.0065, 0.0041 and 0.0028 on three windows of 256 tokens."""


@pytest.mark.slow
@pytest.mark.parametrize("quantize", LARGEST_KL)
def test_a_quantized_model_says_nearly_the_same(quantize: str) -> None:
    model = llmc.compile(model_file("smollm2"), quantize=quantize, prove=False)
    found = accuracy(model)
    assert found.kl < LARGEST_KL[quantize]
    assert found.perplexity < 1.02 * found.reference_perplexity
    assert found.top1 > 0.9
    assert model.generate("The capital of France is", max_new_tokens=1)[0].text == " Paris"


@pytest.mark.slow
def test_the_blocks_of_a_file_are_kept_without_rounding() -> None:
    model = llmc.compile(model_file("smollm2"), quantize="keep")
    rewrites = model.report["rewrites"]
    assert isinstance(rewrites, list)
    packed = [done["error"] for done in rewrites if done["rule"] == "pack_weights"]
    assert len(packed) == 122
    assert max(packed) < 1e-6
