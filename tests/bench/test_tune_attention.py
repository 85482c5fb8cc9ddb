"""What timings of attention say of the number of programs that divide its keys."""

from collections.abc import Callable

import pytest

from llmc.bench.tune_attention import ShareTimings, chosen
from llmc.runtime.shares import Shares

RULE = Shares(32, 64)
PROGRAMS = (8, 16, 24, 32, 48, 64)


def timings(seconds: Callable[[int, int, int], float]) -> ShareTimings:
    """Of numbers of sequences, contexts and programs, by a clock that is made up."""
    return {
        count: {
            context: {programs: seconds(count, context, programs) for programs in PROGRAMS} for context in (512, 8192)
        }
        for count in (1, 2, 8)
    }


@pytest.mark.parametrize(
    ("seconds", "starts"),
    [
        (lambda count, context, programs: 1.0, ((1, 32),)),
        (lambda count, context, programs: 1 + abs(programs - 32), ((1, 32),)),
        (lambda count, context, programs: 1 + abs(programs - 64 // count), ((1, 64), (2, 32), (8, 8))),
        (lambda count, context, programs: 1.0 - 0.0005 * programs, ((1, 32),)),  # too little to leave the rule
        (lambda count, context, programs: 1.0 - (0.002 * programs if count > 1 else 0), ((1, 32), (2, 64))),
        # What longer contexts gain counts against what shorter ones lose, as ratios.
        (
            lambda count, context, programs: {512: 2.0, 8192: 40.0}[context] / (programs if context > 512 else 1),
            ((1, 64),),
        ),
        (lambda count, context, programs: programs if context == 512 else 900 / programs**0.5, ((1, 8),)),
    ],
)
def test_the_clock_chooses_the_programs(
    seconds: Callable[[int, int, int], float], starts: tuple[tuple[int, int], ...]
) -> None:
    assert chosen(RULE, timings(seconds)) == starts
