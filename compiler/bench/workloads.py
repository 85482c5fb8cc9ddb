"""What is measured, in llama-bench's terms: pp512, tg128, tg64@2048, b8."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmc.errors import BadOption

SHORT_PROMPT = 16
"""Tokens before the decode steps of `tg` and `b`."""
DEEP_STEPS = 64
"""Decode steps at a depth, and of each sequence of a batch."""


@dataclass(frozen=True)
class Workload:
    """One measurement: prompts of one length, then decode steps."""

    name: str
    kind: Literal["prefill", "decode"]
    prompt: int
    """Tokens of each prompt."""
    steps: int
    """Decode steps that are timed; 0 for a prefill."""
    sequences: int = 1

    @property
    def tokens(self) -> int:
        """Tokens that one repetition is timed over."""
        return self.sequences * (self.prompt if self.kind == "prefill" else self.steps)

    @property
    def mean_position(self) -> int:
        """The position of the token in the middle of the timed ones, whose cache stands for all."""
        return self.prompt + self.steps // 2

    def prompts(self, vocabulary: int, seed: int) -> list[list[int]]:
        """Random token ids; other ones for each `seed`, so that no engine finds them in its cache."""
        source = random.Random(f"{self.name} {seed}")
        return [[source.randrange(vocabulary) for _ in range(self.prompt)] for _ in range(self.sequences)]


def workloads(
    prefills: Sequence[int], decodes: Sequence[int], depths: Sequence[int], batches: Sequence[int], context: int
) -> list[Workload]:
    """The workloads of these sizes that fit a context of so many tokens.

    Raises BadOption for a size below one, and if nothing fits.
    """
    sizes = {"pp": prefills, "tg": decodes, "depth": depths, "batch": batches}
    for name, values in sizes.items():
        for value in values:
            if value < 1:
                raise BadOption(f"{name}: {value}, expected 1 or more")
    found = [Workload(f"pp{size}", "prefill", size, 0) for size in prefills]
    found += [Workload(f"tg{steps}", "decode", SHORT_PROMPT, steps) for steps in decodes]
    found += [Workload(f"tg{DEEP_STEPS}@{depth}", "decode", depth, DEEP_STEPS) for depth in depths]
    found += [Workload(f"b{count}", "decode", SHORT_PROMPT, DEEP_STEPS, count) for count in batches]
    fitting = [work for work in found if work.prompt + work.steps + 1 <= context]
    if not fitting:
        raise BadOption(f"bench: nothing of {', '.join(work.name for work in found)} fits a context of {context}")
    return fitting
