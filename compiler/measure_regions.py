"""How long each region of a native program takes on this machine, in the steps that programs are explained for."""

import statistics

import numpy as np

from llmc.codegen.explanation import ProgramExplanation, StepSizes
from llmc.runtime.cpu_program import CpuProgram
from llmc.runtime.manifest import Ranges
from llmc.runtime.program import Batch
from llmc.runtime.session import BLOCK_SIZE

WARM_UP = 2
"""Steps before those that count."""


def measured(
    explanation: ProgramExplanation, program: CpuProgram, ranges: Ranges, repetitions: int = 7
) -> ProgramExplanation:
    """The explanation with the median time of each region; steps larger than the program serves are left out.

    The program's cache is set aside anew. Raises ArtifactRejected if the program cannot tell.
    """
    for name, sizes in explanation.steps.items():
        batch = sample_batch(sizes, program.description.vocabulary)
        if int(batch.lengths.max()) > ranges.context or sizes.tokens > ranges.tokens:
            continue
        program.allocate(batch.blocks.size, BLOCK_SIZE)
        samples = [program.measure(batch) for _ in range(WARM_UP + repetitions)][WARM_UP:]
        medians = [statistics.median(times) for times in zip(*samples, strict=True)]
        explanation = explanation.with_measured(name, medians)
    return explanation


def sample_batch(sizes: StepSizes, vocabulary: int) -> Batch:
    """A step of these sizes: random tokens of equally long sequences, which attend to so many keys on average."""
    share = sizes.tokens // sizes.sequences
    before = max(0, sizes.context - share // 2)
    blocks = -(-(before + share) // BLOCK_SIZE)
    tables = np.arange(sizes.sequences * blocks, dtype=np.int64).reshape(sizes.sequences, blocks)
    positions = np.arange(before, before + share, dtype=np.int64)
    slots = tables[:, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    ends = np.arange(1, sizes.sequences + 1, dtype=np.int64) * share
    rows = ends[: sizes.rows] - 1 if sizes.rows <= sizes.sequences else np.arange(sizes.rows, dtype=np.int64)
    return Batch(
        tokens=np.random.default_rng(0).integers(0, vocabulary, share * sizes.sequences),
        positions=np.tile(positions, sizes.sequences),
        slots=np.ascontiguousarray(slots.reshape(-1)),
        starts=np.concatenate([np.zeros(1, np.int64), ends]),
        lengths=np.full(sizes.sequences, before + share, np.int64),
        blocks=tables,
        rows=rows,
    )
