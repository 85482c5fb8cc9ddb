"""Tokens drawn within limits, penalised and reported on the device: those of the host, for many settings and shapes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.choice_steps import HORIZON, Step

from llmc.codegen.triton import emit_sampling
from llmc.runtime import sample
from llmc.runtime.cuda.choices import logprobs_from, marks
from llmc.runtime.sample import MAX_LOGPROBS, SamplingParams, logprobs_of, process

SIZE = 777
"""Of the vocabulary: no multiple of anything."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven parts of a row, and lists that take several rounds."""
    monkeypatch.setattr(emit_sampling, "PART", 128)
    monkeypatch.setattr(emit_sampling, "BLOCK", 256)
    monkeypatch.setattr(sample, "_FIRST_CANDIDATES", SIZE)  # of fewer, equal ones have no order


def random_ways(count: int, seed: int) -> list[SamplingParams]:
    random = np.random.Generator(np.random.PCG64(seed))
    return [
        SamplingParams(
            temperature=float(random.choice([0.05, 0.7, 1.0, 3.0, 40.0])),
            top_k=int(random.choice([0, 1, 2, 20, 300, SIZE - 1, SIZE])),
            top_p=float(random.choice([1.0, 0.0, 1e-9, 0.2, 0.8, 0.95, 0.999999])),
            min_p=float(random.choice([0.0, 0.0, 1e-6, 0.05, 1.0])),
            repetition_penalty=float(random.choice([1.0, 1.0, 1.2, 0.5])),
        )
        for _ in range(count)
    ]


def rows(kind: str, count: int, seed: int) -> torch.Tensor:
    logits = torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed))
    if kind == "peaked":
        return logits * 20
    if kind == "ties":
        return (logits * 3).round()
    if kind == "holes":
        return torch.where(logits > -0.5, logits * 4, float("-inf"))
    if kind == "one":
        return torch.where(torch.arange(SIZE) == 500, logits, float("-inf"))
    return logits * {"flat": 0.01, "usual": 3.0, "far": 1e30}[kind]


def number_of_the_least(step: Step, row: int) -> float:
    """The number that draws the least likely token within the limits: another one if they were found elsewhere."""
    scores = process(step.logits[row].numpy(), step.ways[row], step.marked)
    weights = np.exp(scores - scores.max())
    kept = np.flatnonzero(weights > 1e-6 * weights.sum())
    least = kept[np.argsort(-weights[kept], kind="stable")[-1]]
    return float((weights[:least].sum() + weights[least] / 2) / weights.sum())


@pytest.mark.parametrize(
    ("kind", "room"),
    [
        *((kind, 8192) for kind in ("usual", "flat", "peaked", "ties", "holes", "one", "far")),
        ("ties", 40),
        ("flat", 40),
    ],
)
def test_any_setting_draws_what_the_host_draws(kind: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for few undecided tokens the whole row takes the place of their list."""
    monkeypatch.setattr(emit_sampling, "ROOM", room)
    seen = np.random.Generator(np.random.PCG64(3)).random(SIZE) < 0.3
    ways = random_ways(12, room + len(kind))
    if kind == "ties":  # fp32 makes other scores equal than float64 does
        ways = [replace(way, repetition_penalty=1.0) for way in ways]
    step = Step(rows(kind, len(ways), 7), ways, seen=seen)
    for row in range(len(ways)):
        step.draw_with(row, 1, number_of_the_least(step, row))
    for place in range(2):  # the second takes what the first left behind
        step.arrays["seen"][...] = torch.from_numpy(marks(seen))
        step.run()
        wanted = [step.wanted(row, place) for row in range(len(ways))]
        assert step.arrays["chosen"][:, place].tolist() == wanted, [
            (have, want, way)
            for have, want, way in zip(step.arrays["chosen"][:, place].tolist(), wanted, ways, strict=True)
            if have != want
        ]
    for name in ("bin_counts", "bin_masses", "choice_arrived"):
        assert not step.memory[name].any(), f"{name}: something is left for the next step"


def test_without_limits_one_launch_chooses() -> None:
    ways = [SamplingParams(), SamplingParams(temperature=1.0, top_k=SIZE), SamplingParams(repetition_penalty=1.1)]
    assert Step(rows("usual", 3, 1), ways).run() == [3 * 7]
    assert Step(rows("usual", 3, 1), [*ways[:2], SamplingParams(temperature=1.0, top_p=0.9)]).run() == [3 * 7] * 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_chosen_tokens_are_penalised_from_then_on(temperature: float) -> None:
    """Flat logits, all positive, and a penalty that makes a token the last choice."""
    way = SamplingParams(temperature=temperature, repetition_penalty=1e6, top_k=1)
    logits = 5 + torch.rand(1, SIZE, generator=torch.Generator().manual_seed(2))
    step = Step(logits, [way])
    for _ in range(HORIZON):
        step.run()
    likeliest = logits[0].argsort(descending=True)[:HORIZON].tolist()
    assert step.arrays["chosen"][0].tolist() == likeliest
    seen = np.zeros(SIZE, np.bool_)
    seen[likeliest] = True
    assert step.arrays["seen"][0].tolist() == marks(seen).tolist()


@pytest.mark.parametrize("kind", ["usual", "ties", "holes"])
def test_log_probabilities_are_those_of_the_host(kind: str) -> None:
    """Of the logits as they are, whatever the temperature and the penalty."""
    counts = [None, 0, 1, 5, MAX_LOGPROBS, 7, 3]
    ways = [SamplingParams(temperature=0.8, repetition_penalty=1.5, top_k=50, logprobs=count) for count in counts]
    ways[4:6] = [SamplingParams(logprobs=MAX_LOGPROBS), SamplingParams(temperature=1.3, logprobs=7)]
    seen = np.arange(SIZE) % 3 == 0
    step = Step(rows(kind, len(ways), 9), ways, seen=seen)
    step.run()
    assert (step.arrays["ranked"][0] == -1).all(), "nothing was asked for"
    for row, count in enumerate(counts):
        if count is None:
            continue
        total = float(step.arrays["totals"].view(torch.float64)[row, 0])
        found = logprobs_from(step.arrays["ranked"][row, 0].numpy(), total, count)
        assert found.token_id == step.arrays["chosen"][row, 0]
        wanted = logprobs_of(step.logits[row].numpy(), found.token_id, count)
        assert [token for token, _ in found.top] == [token for token, _ in wanted.top]
        assert math.isclose(found.logprob, wanted.logprob, abs_tol=1e-6)
        np.testing.assert_allclose([p for _, p in found.top], [p for _, p in wanted.top], atol=1e-6)


def test_fewer_tokens_than_are_reported() -> None:
    step = Step(torch.tensor([[0.5, -1.0, 0.5]]), [SamplingParams(logprobs=20)])
    step.run()
    total = float(step.arrays["totals"].view(torch.float64)[0, 0])
    found = logprobs_from(step.arrays["ranked"][0, 0].numpy(), total, 3)
    assert [token for token, _ in found.top] == [0, 2, 1] and found.token_id == 0


def test_programs_in_any_order_draw_the_same() -> None:
    """Sums are of integers: the order in which the interpreter runs programs, new each time, changes nothing."""
    ways = random_ways(6, 5)
    found = []
    for _ in range(3):
        step = Step(rows("usual", len(ways), 4), ways, seen=np.arange(SIZE) % 2 == 0)
        step.run()
        found.append(step.arrays["chosen"][:, 0].tolist())
    assert found[0] == found[1] == found[2]
