"""Sampling agrees with transformers' processors, is repeatable, and refuses what makes no sense."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llmc.errors import BadRequest, NumericsGateFailed
from llmc.runtime.sample import Sampler, SamplingParams, logprobs_of, process

PARAMS = [
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=3.0),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1.0, top_k=7),
    SamplingParams(temperature=1.0, top_k=10_000),
    SamplingParams(temperature=1.0, top_p=0.0),
    SamplingParams(temperature=1.0, top_p=0.3),
    SamplingParams(temperature=0.6, top_p=0.95),
    SamplingParams(temperature=30.0, top_p=0.999),
    SamplingParams(temperature=1.0, min_p=0.1),
    SamplingParams(temperature=1.5, min_p=1.0),
    SamplingParams(temperature=1.0, repetition_penalty=1.3),
    SamplingParams(temperature=1.0, repetition_penalty=0.5),
    SamplingParams(temperature=0.8, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.1),
]


def rows(count: int, size: int) -> np.ndarray:
    return (np.random.Generator(np.random.PCG64(11)).standard_normal((count, size)) * 4).astype(np.float32)


def oracle(logits: np.ndarray, params: SamplingParams, prompt: list[int]) -> np.ndarray:
    """Log-probabilities by transformers, in the order in which its `generate` applies the processors, in float64."""
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    scores = steps(torch.tensor([prompt]), torch.from_numpy(logits).double()[None])
    return torch.log_softmax(scores, -1)[0].numpy()


@pytest.mark.parametrize("params", PARAMS, ids=str)
@pytest.mark.parametrize("size", [50, 3000])
def test_scores_agree_with_transformers(params: SamplingParams, size: int) -> None:
    prompt = [1, 5, 5, 9, 30]
    seen = np.zeros(size, np.bool_)
    seen[prompt] = True
    for logits in rows(20, size):
        expected = oracle(logits, params, prompt)
        scores = process(logits, params, seen)
        found = scores - math.log(np.exp(scores).sum())
        np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
        kept = ~np.isinf(expected)
        np.testing.assert_allclose(found[kept], expected[kept], atol=1e-12)


def test_tokens_that_tie_for_the_last_place_of_top_k_all_stay() -> None:
    scores = process(np.array([1, 3, 2, 2, 0], np.float32), SamplingParams(temperature=1.0, top_k=2), np.zeros(5, bool))
    assert np.isinf(scores).tolist() == [True, False, False, False, True]


def test_samples_have_the_frequencies_of_the_distribution() -> None:
    params = SamplingParams(temperature=0.9, top_k=5, seed=4)
    logits = rows(1, 20)[0]
    sampler = Sampler(params, 20)
    counts = np.bincount([sampler.choose(logits) for _ in range(20_000)], minlength=20)
    expected = np.exp(oracle(logits, params, [0]))
    assert np.abs(counts / 20_000 - expected).max() < 0.01
    assert counts[expected == 0].sum() == 0


def test_a_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    logits, params = rows(30, 100) / 4, SamplingParams(temperature=1.0, seed=5)
    first, again, other = (
        [sampler.choose(row) for row in logits]
        for sampler in (Sampler(params, 100), Sampler(params, 100), Sampler(replace(params, seed=6), 100))
    )
    assert first == again
    assert first != other
    assert first[:6] == [84, 73, 52, 15, 7, 41]


def test_temperature_zero_takes_the_likeliest_and_the_lowest_of_equals() -> None:
    logits = np.array([1, 3, 3, 2], np.float32)
    assert Sampler(SamplingParams(), 4).choose(logits) == 1
    assert Sampler(SamplingParams(top_k=2, top_p=0.1, min_p=0.9), 4).choose(logits) == 1


def test_the_repetition_penalty_applies_at_temperature_zero_to_prompt_and_output() -> None:
    logits = np.array([2.0, 3.0, 2.9, -1.0], np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 4, prompt=[1])
    assert [sampler.choose(logits) for _ in range(2)] == [2, 0]


def test_tiny_and_huge_temperatures_neither_overflow_nor_warn() -> None:
    logits = np.array([1e30, -1e30, 0, 1e30], np.float32)
    for temperature in (1e-300, 1e-5, 1e6):
        sampler = Sampler(SamplingParams(temperature=temperature, top_p=0.9, min_p=0.01, seed=1), 4)
        assert {sampler.choose(logits) for _ in range(50)} == {0, 3}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_stop_the_request(bad: float, temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), 3)
    with pytest.raises(NumericsGateFailed, match="the largest logit is"):
        sampler.choose(np.array([1, bad, 2], np.float32))
    with pytest.raises(NumericsGateFailed, match="the largest logit is -inf"):
        sampler.choose(np.full(3, -np.inf, np.float32))


def test_logprobs_are_those_of_the_unprocessed_distribution() -> None:
    logits = rows(1, 3000)[0]
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1)
    found = logprobs_of(logits, 17, 5)
    top = torch.topk(expected, 5)
    assert found.token_id == 17
    assert found.logprob == pytest.approx(float(expected[17]), abs=1e-12)
    assert [token for token, _ in found.top] == top.indices.tolist()
    np.testing.assert_allclose([value for _, value in found.top], top.values.numpy(), atol=1e-12)
    assert logprobs_of(logits, 17, 0).top == ()
    assert [token for token, _ in logprobs_of(np.array([1, 2, 2, 2], np.float32), 0, 2).top] == [1, 2]


WRONG = [-1, 1 << 80, math.nan, math.inf, -math.inf, "1", None, [1], True]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"])
def test_every_number_of_a_request_is_checked(name: str, value: object) -> None:
    with pytest.raises(BadRequest, match=f"{name}: expected"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("top_p", 1.01),
        ("min_p", 1.01),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("seed", 1.0),
        ("logprobs", 21),
        ("logprobs", -1),
        ("stop", "x"),
        ("stop", (1,)),
        ("stop", ("",)),
        ("stop", ("x" * 257,)),
        ("stop", ("x",) * 17),
        ("stop_token_ids", ("x",)),
        ("stop_token_ids", 3),
    ],
)
def test_values_outside_their_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(BadRequest, match=f"^{name}: "):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
