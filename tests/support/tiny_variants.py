"""The program of tiny_gpu_program.py with three variants of its logits, which all compute the same."""

import dataclasses

from support import tiny_gpu_program
from support.tiny_gpu_program import PLAN, V

from llmc.runtime.crossover import Crossover
from llmc.runtime.cuda.plan import Candidate, Extent, When

LINEAR = f"{V}x8:f32"
CROSSOVER = Crossover(3, 17)
RANGES = {"gemv": [(1, 3)], "flat": [(1, 8), (9, 64)], "gemm": [(2, None)]}
"""Rows that the launches of each variant take."""
NAMES = {("gemv", 1): "logits_0", ("flat", 1): "logits_1", ("flat", 9): "logits_2", ("gemm", 2): "logits_3"}
"""The kernel of each."""
TEXT = tiny_gpu_program.TEXT + "".join(f"\n{name} = logits_0" for name in list(NAMES.values())[1:]) + "\n"

_LOGITS = PLAN.launches[-1]
_WHEN = {("gemv", 1): (1, 2), ("flat", 1): (3, 8), ("flat", 9): (9, 16), ("gemm", 2): (17, None)}
VARIANTS = dataclasses.replace(
    PLAN,
    kernels=(
        *PLAN.kernels,
        *(dataclasses.replace(PLAN.kernels[-1], name=name) for name in list(NAMES.values())[1:]),
    ),
    launches=(
        *PLAN.launches[:-1],
        *(
            dataclasses.replace(
                _LOGITS,
                kernel=NAMES[variant, least],
                grid=(Extent("R"), *_LOGITS.grid[1:]),
                when=When("R", *_WHEN[variant, least]),
                candidate=Candidate(LINEAR, variant, least, most),
            )
            for variant, ranges in RANGES.items()
            for least, most in ranges
        ),
    ),
    crossovers={LINEAR: CROSSOVER},
)
"""Its own crossovers: flat from 3 rows on, gemm from 17."""
