"""Is a compiled model the model? Every way of feeding tokens must give the logits of one whole forward pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from llmc.compare import FLOOR
from llmc.errors import NumericsGateFailed
from llmc.runtime.program import Program
from llmc.zoo.oracle import logits_of, true_logits_of
from llmc.zoo.steps import Driver, run_in_pieces

FACTOR = 2.0
"""How many times eager float32's own error (root mean square, against float64) a compiled model may have."""

LONG, MIDDLE, SHORT, ONE = 19, 12, 7, 1
"""Lengths of the sequences: longer than two windows and four blocks, and down to a single token."""


@dataclass(frozen=True)
class Outcome:
    """One way of feeding the tokens, and how far its logits are from the truth."""

    check: str
    error: float
    """Root mean square of the differences from float64."""
    limit: float
    """The largest error that passes."""

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.limit

    @property
    def ratio(self) -> float:
        """The error as a part of what is allowed."""
        return self.error / self.limit if self.limit else float(self.error > 0)


def prefill(program: Program, sequences: Sequence[Sequence[int]]) -> dict[int, torch.Tensor]:
    """The longest sequence in one step."""
    return {0: run_in_pieces(program, sequences[0], [])}


def single_token(program: Program, sequences: Sequence[Sequence[int]]) -> dict[int, torch.Tensor]:
    """A prompt of one token."""
    return {3: run_in_pieces(program, sequences[3], [])}


def decode(program: Program, sequences: Sequence[Sequence[int]]) -> dict[int, torch.Tensor]:
    """A prompt, then token by token past every window."""
    return {0: run_in_pieces(program, sequences[0], [5] + [1] * (LONG - 6))}


def chunks(program: Program, sequences: Sequence[Sequence[int]]) -> dict[int, torch.Tensor]:
    """A prompt in chunks of one, three, and the rest, which is longer than a window."""
    return {0: run_in_pieces(program, sequences[0], [1, 3])}


def ragged(program: Program, sequences: Sequence[Sequence[int]]) -> dict[int, torch.Tensor]:
    """Three prompts of different lengths in one step, then a step that mixes a chunk with single tokens."""
    driver = Driver(program)
    plan = {"0": (14, 5), "1": (11, 1), "2": (2, 5)}
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in plan}
    first = driver.step({name: sequences[int(name)][:a] for name, (a, _) in plan.items()})
    second = driver.step({name: sequences[int(name)][a : a + b] for name, (a, b) in reversed(plan.items())})
    for name in plan:
        parts[name] = [first[name], second[name]]
    return {int(name): torch.cat(rows) for name, rows in parts.items()}


CHECKS: Mapping[str, Callable[[Program, Sequence[Sequence[int]]], dict[int, torch.Tensor]]] = {
    "prefill": prefill,
    "single token": single_token,
    "decode": decode,
    "chunks": chunks,
    "ragged": ragged,
}
"""The ways of feeding tokens, each giving logits by the number of the sequence."""


def sequences(vocab_size: int, seed: int = 1) -> list[list[int]]:
    """The random prompts of the checks, without the lowest ids, which are special tokens in many models."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (LONG, MIDDLE, SHORT, ONE)
    return [torch.randint(4, vocab_size - 1, (length,), generator=generator).tolist() for length in lengths]


def check(program: Program, module: nn.Module, vocab_size: int, shortest: int = 1) -> list[Outcome]:
    """Compare `program` with the whole forward pass of `module` in every way of feeding tokens.

    Each prompt begins a sequence of `shortest` tokens at least: `module` itself may compute shorter ones otherwise.
    """
    prompts = sequences(vocab_size)
    whole = [prompt + [0] * (shortest - len(prompt)) for prompt in prompts]
    eager = [logits_of(module, tokens).double()[: len(prompt)] for tokens, prompt in zip(whole, prompts, strict=True)]
    true = [
        logits.double()[: len(prompt)] for logits, prompt in zip(true_logits_of(module, whole), prompts, strict=True)
    ]
    outcomes = []
    for name, feed in CHECKS.items():
        have = feed(program, prompts)
        which = sorted(have)
        expected = torch.cat([true[i] for i in which])
        eager_error = rms(torch.cat([eager[i] for i in which]) - expected)
        error = rms(torch.cat([have[i].double() for i in which]) - expected)
        outcomes.append(Outcome(name, error, FACTOR * eager_error + FLOOR * rms(expected)))
    return outcomes


def require(outcomes: Sequence[Outcome], name: str) -> None:
    """Raise NumericsGateFailed, naming every check that did not pass, if any did not."""
    failed = [f"{o.check} by {o.error:.2e} (at most {o.limit:.2e} is allowed)" for o in outcomes if not o.passed]
    if failed:
        raise NumericsGateFailed(f"{name}: logits differ from eager torch in {', '.join(failed)}")


def rms(x: torch.Tensor) -> float:
    """The root mean square of `x`."""
    return x.square().mean().sqrt().item()
