"""Tokens chosen on the device are those of the host's sampler, and the next step's arrays are made of them."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from support.rearranged_weights import TYPES
from support.triton_interpreter import launch, load_kernels

from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_sampling import emit_sampling
from llmc.codegen.triton.kernel import module_text
from llmc.runtime import sample
from llmc.runtime.cuda.choices import marks
from llmc.runtime.sample import MAX_LOGPROBS, SamplingParams, process

HORIZON, BLOCKS = 4, 3


@dataclass
class Step:
    """The arrays of a decode step of some sequences, each with its own way of sampling."""

    logits: torch.Tensor
    ways: list[SamplingParams]
    level: str = "sm_80"
    seen: np.ndarray | None = None
    """[V] the tokens that are penalised."""
    arrays: dict[str, torch.Tensor] = field(default_factory=dict)
    memory: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.ways)
        random = np.random.Generator(np.random.PCG64(5))
        self.uniforms = random.random((count, HORIZON))

        def bits(values: object) -> torch.Tensor:
            return torch.from_numpy(np.asarray(values, np.float64).copy()).view(torch.int64)

        self.arrays |= {
            "temperatures": bits([way.temperature for way in self.ways]),
            "top_ks": torch.tensor([way.top_k for way in self.ways]),
            "top_ps": bits([way.top_p for way in self.ways]),
            "min_ps": bits([way.min_p for way in self.ways]),
            "penalties": bits([way.repetition_penalty for way in self.ways]),
            "seen": torch.from_numpy(marks(self.marked)).repeat(count, 1),
            "logprobs": torch.tensor([-1 if way.logprobs is None else way.logprobs for way in self.ways]),
            "ranked": torch.full((count, HORIZON, 1 + MAX_LOGPROBS), -1),
            "totals": torch.full((count, HORIZON), -1),
            "uniforms": bits(self.uniforms).flatten(),
            "ends": torch.full((count, 8), -1),
            "remaining": torch.full((count,), HORIZON),
            "made": torch.zeros(count, dtype=torch.int64),
            "chosen": torch.full((count, HORIZON), -1),
            "horizon": torch.tensor([HORIZON]),
            "tokens": torch.full((count,), 99),
            "positions": torch.arange(count) + 126,
            "lengths": torch.arange(count) + 127,
            "slots": torch.full((count,), 77),
            "blocks": torch.arange(count * BLOCKS).reshape(count, BLOCKS) + 10,
        }

    @property
    def marked(self) -> np.ndarray:
        return np.zeros(self.vocabulary, np.bool_) if self.seen is None else self.seen

    def run(self) -> list[int]:
        """The launches after a step; how many programs each had."""
        drafts = emit_sampling(context := Context(Target.preset(self.level), Crossovers(), (), 128, self.vocabulary))
        module = load_kernels(module_text({f"kernel_{i}": draft.kernel for i, draft in enumerate(drafts)}, "Sampling."))
        sizes = {"B": len(self.ways), "F": int(any(limits(way, self.vocabulary) for way in self.ways))}
        grids = []
        for number, draft in enumerate(drafts):
            for name, space in context.workspaces.items():
                bytes = torch.zeros(space.bytes_per_sequence * len(self.ways), dtype=torch.uint8)
                self.memory.setdefault(name, bytes)
            arguments = [
                self._argument(ref.argument, type)
                for ref, (_, type) in zip(draft.kernel.refs, draft.kernel.parameters, strict=True)
            ]
            grid = tuple(extent.at(sizes) for extent in draft.grid)
            if draft.when.holds(sizes):
                grids.append(grid[0] * grid[1])
                launch(getattr(module, f"kernel_{number}"), grid, *arguments)
        return grids

    def _argument(self, argument: object, type: str) -> object:
        kind, name = argument.kind, argument.name  # type: ignore[attr-defined]
        if kind == "size":
            return BLOCKS
        if kind == "workspace":
            return self.memory[name].view({**TYPES, "*i32": torch.int32}[type])
        return self.logits if kind == "logits" else self.arrays[name]

    @property
    def vocabulary(self) -> int:
        return self.logits.shape[1]

    def draw_with(self, row: int, place: int, number: float) -> None:
        """Instead of a random number."""
        self.uniforms[row, place] = number
        self.arrays["uniforms"].view(torch.float64)[row * HORIZON + place] = number

    def wanted(self, row: int, place: int = 0) -> int:
        """The host's choice, by the same random number."""
        logits = self.logits[row].numpy()
        scores = process(logits, self.ways[row], self.marked)
        if not self.ways[row].temperature:
            return int(scores.argmax())
        candidates = np.flatnonzero(scores > -np.inf)
        cumulative = np.cumsum(np.exp(scores[candidates] - scores[candidates].max()))
        at = np.searchsorted(cumulative, self.uniforms[row, place] * cumulative[-1], side="right")
        return int(candidates[min(int(at), len(candidates) - 1)])


def limits(way: SamplingParams, vocabulary: int) -> bool:
    return way.temperature > 0 and (0 < way.top_k < vocabulary or way.top_p < 1 or way.min_p > 0)


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
