"""What tuning must do on any GPU: find a table that the program can use, and computes the same with."""

from collections.abc import Sequence

from support.gpu_zoo import VOCAB, OnGpu

from llmc.bench.tune_gpu import measure
from llmc.runtime.crossover import NEVER, Crossover
from llmc.runtime.cuda.cuda_device import CudaDevice
from llmc.zoo import tiny
from llmc.zoo.checks import sequences
from llmc.zoo.steps import run_in_pieces

TABLES = (
    Crossover(1, 2, "test"),
    Crossover(1, 20, "test"),
    Crossover(1, 2, "test", 2),
    Crossover(NEVER, NEVER, "test"),
)
"""Each variant as soon as it can serve."""


def tunes_and_computes_the_same(
    on_gpu: OnGpu, family: str, storage: str, *, rows: Sequence[int], repetitions: int, rotated: int
) -> None:
    """With the program's own crossovers, with those that were measured, and with each variant as soon as can be."""
    program, prompt = on_gpu(tiny(family), quantize=storage), sequences(VOCAB)[0]
    own = run_in_pieces(program, prompt, [9, 1, 2])
    assert isinstance(program.device, CudaDevice)
    tuned = measure(
        program, program.device, context=64, repetitions=repetitions, source="measured", rows=rows, rotated=rotated
    )
    assert tuned.crossovers.keys() == program.plan.crossovers.keys()
    for linear, crossover in tuned.crossovers.items():
        print(linear, crossover, tuned.timings[linear])
        assert crossover.in_order and program.plan.crossovers[linear] == crossover
        assert all(1e-7 < taken < 1 for each in tuned.timings[linear].values() for taken in each.values())
    tolerance = 2e-5 if storage == "float" else 2e-2
    for table in (None, *(dict.fromkeys(tuned.crossovers, crossover) for crossover in TABLES)):
        if table is not None:
            program.tune(table)
        found = run_in_pieces(program, prompt, [9, 1, 2])
        error = ((found - own).square().mean().sqrt() / own.std()).item()
        assert error < tolerance, f"{table}: {error:.1e}"
