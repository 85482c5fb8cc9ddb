"""Measure on this GPU over how many programs attention should divide the keys of a decode step.

All launches of one kind of attention are recorded, for all layers and over several caches, so that what the chip's
caches hold of one is gone when its turn comes again. A number of sequences has one number of programs, whatever their
contexts: a recorded step serves while contexts grow. So what counts is how much longer than by the rule steps take,
over all contexts that are measured.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from llmc.bench.gpu_kernels import Timed, decode_batch, reads_indices, timed
from llmc.errors import OutOfMemory
from llmc.runtime.cuda.device import Graph
from llmc.runtime.cuda.plan import CACHE_BYTES, Launch, Plan, Product
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.cuda.step_arrays import StepArrays
from llmc.runtime.shares import Shares, ShareTable

SEQUENCES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (512, 2048, 8192, 32768)
TIMES_RULE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Numbers of programs that are measured, as multiples of what the rule says."""
LEAST_GAIN = 0.03
"""What other numbers must be faster by to take the place of the rule."""
MOST_TOKENS = 1 << 18
"""In the caches of all sequences of a measurement."""
MOST_COPIES = 32

ShareTimings = dict[int, dict[int, dict[int, float]]]
"""Seconds for all layers by sequences, context and programs."""


@dataclass(frozen=True)
class Measured:
    """What a measurement of attention is made with."""

    program: GpuProgram
    device: Timed
    """The program's."""
    repetitions: int
    rotated: int
    """Bytes of keys and values to read one after another."""


def measure_shares(
    given: Measured,
    *,
    context: int,
    source: str,
    sequences: Sequence[int] = SEQUENCES,
    contexts: Sequence[int] = CONTEXTS,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, ShareTable], dict[str, ShareTimings]]:
    """Measure the attentions of a program one after another: what to use, and the times that say so.

    Args:
        given: the program, and how to measure.
        context: tokens that a sequence may have.
        source: what is said of where the numbers come from.
        sequences: numbers of sequences to measure, from 1 on. What the GPU has no memory for is left out.
        contexts: tokens of each sequence to measure.
        progress: told which attention is being measured.
    """
    lengths = sorted({min(each, context) for each in contexts})
    tables: dict[str, ShareTable] = {}
    found: dict[str, ShareTimings] = {}
    for name, shares in given.program.plan.shares.items():
        progress(name)
        timings: ShareTimings = {}
        for count in sequences:
            for length in lengths:
                if (seconds := _measured(given, name, count, length)) is not None:
                    timings.setdefault(count, {})[length] = seconds
        if 1 in timings:
            tables[name] = ShareTable(chosen(shares, timings), source)
            found[name] = timings
    return tables, found


def chosen(shares: Shares, timings: ShareTimings) -> tuple[tuple[int, int], ...]:
    """From how many sequences on, over how many programs (see `ShareTable`)."""
    starts: list[tuple[int, int]] = []
    for count, by_context in sorted(timings.items()):

        def slower(programs: int, by_context: Mapping[int, Mapping[int, float]] = by_context) -> float:
            """By how much than the rule, as a mean of logarithms."""
            ratios = [math.log(each[programs] / each[shares.rule]) for each in by_context.values()]
            return sum(ratios) / len(ratios)

        best = min(next(iter(by_context.values())), key=slower)
        best = best if slower(best) < math.log1p(-LEAST_GAIN) else shares.rule
        if not starts or starts[-1][1] != best:
            starts.append((count, best))
    return tuple(starts)


def _measured(given: Measured, name: str, count: int, length: int) -> dict[int, float] | None:
    """Median seconds by programs; None where there is no memory for so many sequences of such a length."""
    if count * length > MOST_TOKENS:
        return None
    launches = list(_launches(given.program.plan, name))
    if not launches:
        return None
    wanted = -(-given.rotated // max(1, count * length * _bytes(given.program.plan, launches)))
    for copies in dict.fromkeys((min(wanted, MOST_COPIES, max(1, MOST_TOKENS // (count * length))), 1)):
        try:
            return _timed(given, name, launches, count, length, copies)
        except OutOfMemory:
            continue
    return None


def _timed(
    given: Measured, name: str, launches: Sequence[Launch | Product], count: int, length: int, copies: int
) -> dict[int, float]:
    program, shares = given.program, given.program.plan.shares[name]
    batch = decode_batch(count, length - 1, program.block_multiple)
    blocks = batch.blocks.size
    program.allocate(copies * blocks, program.block_multiple)
    steps = []
    for copy in range(copies):
        moved = replace(
            batch, blocks=batch.blocks + copy * blocks, slots=batch.slots + copy * blocks * program.block_multiple
        )
        steps.append(program.arranged(moved, StepArrays(program.device)))
    program.run(program.plan.launches, *steps[0])  # so that all read numbers as they occur

    def record() -> None:
        for step in steps:
            program.run(recorded, *step)

    # Lists of blocks are not there any more once the step is over.
    recorded = program.plan.launches if reads_indices(program.plan, launches) else launches
    graphs: dict[int, Graph] = {}
    for programs in sorted({max(1, min(shares.most, round(shares.rule * times))) for times in TIMES_RULE}):
        with divided(program, name, programs):
            graphs[programs] = given.device.capture(record)
    return timed(given.device, graphs, given.repetitions)


@contextmanager
def divided(program: GpuProgram, name: str, programs: int) -> Iterator[None]:
    """Launches divide the keys of an attention over so many programs meanwhile."""
    own = program.plan
    table = ShareTable(((1, programs),), "to be measured")
    program.plan = replace(own, shares={**own.shares, name: replace(own.shares[name], chosen=table)})
    try:
        yield
    finally:
        program.plan = own


def _launches(plan: Plan, name: str) -> Iterator[Launch | Product]:
    """Those of an attention."""
    for launch in plan.launches:
        if any(argument.kind == "shares" and argument.name == name for argument in launch.arguments):
            yield launch


def _bytes(plan: Plan, launches: Sequence[Launch | Product]) -> int:
    """Of the keys and values of a token, in all layers of some launches."""
    layers = {argument.number for launch in launches for argument in launch.arguments if argument.kind == "cache"}
    caches = [plan.caches[layer] for layer in layers]
    return sum(cache.heads * (cache.key_size + cache.value_size) * CACHE_BYTES[cache.dtype] for cache in caches)
