"""Tokens chosen on the device are those of the host's sampler, and the next step's arrays are made of them."""

import pytest
import torch
from support.choice_steps import HORIZON, Step

from llmc.runtime import sample
from llmc.runtime.sample import SamplingParams

WAYS = [
    SamplingParams(),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=1.5, top_k=3),
    SamplingParams(temperature=1.0, top_p=0.7),
    SamplingParams(temperature=1.0, top_p=0.0),
    SamplingParams(temperature=2.0, min_p=0.2),
    SamplingParams(temperature=1.2, top_k=40, top_p=0.9, min_p=0.01),
    SamplingParams(temperature=5.0, top_k=10**6, top_p=0.999),
]


@pytest.mark.parametrize("vocabulary", [1, 13, 2048, 5000])
def test_tokens_are_those_of_the_host(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(len(WAYS), vocabulary, generator=generator) * 3
    if vocabulary > 20:
        logits[:, ::7] = float("-inf")
    step = Step(logits, WAYS)
    step.run()
    assert step.arrays["chosen"][:, 0].tolist() == [step.wanted(row) for row in range(len(WAYS))]


@pytest.mark.parametrize("vocabulary", [40, 3000])
def test_of_equal_logits_the_first_are_taken(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few distinct values, so that the last places of top-k and top-p are shared."""
    monkeypatch.setattr(sample, "_FIRST_CANDIDATES", vocabulary)  # of fewer, equal ones have no order
    logits = torch.randint(-2, 3, (len(WAYS), vocabulary), generator=torch.Generator().manual_seed(1)).float()
    logits[:, 5] = -0.0
    step = Step(logits, WAYS)
    step.run()
    assert step.arrays["chosen"][:, 0].tolist() == [step.wanted(row) for row in range(len(WAYS))]


def test_many_draws_have_the_distribution() -> None:
    way = SamplingParams(temperature=0.8, top_p=0.9)
    step = Step(torch.randn(1, 30, generator=torch.Generator().manual_seed(2)).repeat(60, 1), [way] * 60)
    step.run()
    assert step.arrays["chosen"][:, 0].tolist() == [step.wanted(row) for row in range(60)]
    assert len(set(step.arrays["chosen"][:, 0].tolist())) > 3


def test_chosen_tokens_are_the_next_step() -> None:
    step = Step(torch.randn(4, 50, generator=torch.Generator().manual_seed(3)), [SamplingParams()] * 4, "sm_90")
    before = {name: array.clone() for name, array in step.arrays.items()}
    token = step.logits.argmax(1)
    step.arrays["ends"][0, 7] = token[0]  # ends here
    step.arrays["remaining"][1] = 1  # may make no other
    step.arrays["remaining"][2] = 0  # has ended before
    step.arrays["made"][3] = 2
    step.run()
    after = step.arrays
    assert after["remaining"].tolist() == [0, 0, 0, HORIZON - 1]
    assert after["made"].tolist() == [1, 1, 0, 3]
    assert after["chosen"].tolist() == [
        [int(token[0]), -1, -1, -1], [int(token[1]), -1, -1, -1], [-1] * 4, [-1, -1, int(token[3]), -1]
    ]  # fmt: skip
    for name in ("tokens", "positions", "lengths", "slots"):
        assert torch.equal(after[name][:3], before[name][:3]), f"{name}: only sequences that go on have a next step"
    assert [int(after[name][3]) for name in ("tokens", "positions", "lengths")] == [int(token[3]), 130, 131]
    assert int(after["slots"][3]) == int(before["blocks"][3, 1]) * 128 + 2


def test_a_later_token_takes_the_next_random_number() -> None:
    step = Step(torch.zeros(2, 64), [SamplingParams(temperature=1.0)] * 2)
    step.run()
    step.run()
    found = step.arrays["chosen"][:, :2].tolist()
    assert found == [[step.wanted(row, place) for place in (0, 1)] for row in range(2)]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("way", [WAYS[0], WAYS[4]], ids=["greedy", "top_p"])
def test_logits_that_are_no_numbers_end_a_sequence(broken: float | None, way: SamplingParams) -> None:
    logits = torch.randn(2, 4100, generator=torch.Generator().manual_seed(4))
    if broken is None:
        logits[1] = float("-inf")
    else:
        logits[1, 4099] = broken
    step = Step(logits, [way] * 2)
    step.run()
    assert step.arrays["chosen"][:, 0].tolist() == [step.wanted(0), -2]
    assert step.arrays["remaining"].tolist() == [HORIZON - 1, 0]
    assert step.arrays["made"].tolist() == [1, 0]
