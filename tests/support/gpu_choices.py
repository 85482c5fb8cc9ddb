"""What kernels that choose tokens must do, wherever they run."""

import math

import numpy as np
import torch
from support.choice_steps import Step

from llmc.runtime.cuda.choices import logprobs_from
from llmc.runtime.sample import SamplingParams, logprobs_of

WAYS = [
    SamplingParams(logprobs=3),
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(temperature=0.8, logprobs=20),
    SamplingParams(temperature=1.0, repetition_penalty=1.2),
    SamplingParams(temperature=0.7, top_k=20),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=1.5, min_p=0.05),
    SamplingParams(temperature=1.2, top_k=50, top_p=0.8, min_p=0.01, repetition_penalty=1.1, logprobs=5),
    SamplingParams(temperature=30.0, top_p=0.7),
]


def tokens_are_those_of_the_host(level: str, vocabulary: int, *, rounded: bool = False) -> None:
    """Every way of choosing, penalised and reported; `rounded` logits are equal to others."""
    logits = torch.randn(len(WAYS), vocabulary, generator=torch.Generator().manual_seed(1)) * 3
    # Of equal logits fp32 may make others than float64, and the host's order for top-p is not that of tokens.
    ways = [way for way in WAYS if not rounded or (way.repetition_penalty == 1.0 and way.top_p == 1.0)]
    logits = (logits.round() if rounded else logits)[: len(ways)].contiguous()
    step = Step(logits, ways, level, seen=np.arange(vocabulary) % 5 == 0)
    step.run()
    assert step.arrays["chosen"][:, 0].tolist() == [step.wanted(row) for row in range(len(ways))]
    step.run()  # with what the first has left behind
    assert (step.arrays["made"] == 2).all() and (step.arrays["chosen"][:, 1] >= 0).all()
    for row, way in enumerate(ways):
        if way.logprobs is not None:
            total = float(step.arrays["totals"].view(torch.float64)[row, 0])
            found = logprobs_from(step.arrays["ranked"][row, 0].numpy(), total, way.logprobs)
            host = logprobs_of(logits[row].numpy(), found.token_id, way.logprobs)
            assert [token for token, _ in found.top] == [token for token, _ in host.top]
            assert math.isclose(found.logprob, host.logprob, abs_tol=1e-6)
