"""What tuning must do on any GPU: find a table that the program can use, and computes the same with."""

from collections.abc import Sequence

from support.gpu_zoo import VOCAB, OnGpu

from llmc.bench.tune_gpu import measure
from llmc.runtime.crossover import NEVER, Crossover
from llmc.runtime.cuda.cuda_device import CudaDevice
from llmc.runtime.shares import ShareTable, Tuned
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
SHARES = (ShareTable(((1, 1),), "test"), ShareTable(((1, 3), (2, 1 << 16)), "test"))
"""One program for all keys, and as many as there is memory for."""


def tunes_and_computes_the_same(
    on_gpu: OnGpu,
    family: str,
    storage: str,
    *,
    rows: Sequence[int],
    repetitions: int,
    rotated: int,
    sequences_at_once: Sequence[int] = (1, 2),
) -> None:
    """With the program's own crossovers, with those that were measured, and with each variant as soon as can be; and
    with the keys of attention divided over other numbers of programs.
    """
    program, prompt = on_gpu(tiny(family), quantize=storage), sequences(VOCAB)[0]
    own = run_in_pieces(program, prompt, [9, 1, 2])
    assert isinstance(program.device, CudaDevice)
    tuned = measure(
        program,
        program.device,
        context=64,
        repetitions=repetitions,
        source="measured",
        rows=rows,
        sequences=sequences_at_once,
        rotated=rotated,
    )
    assert tuned.crossovers.keys() == program.plan.crossovers.keys()
    for linear, crossover in tuned.crossovers.items():
        print(linear, crossover, tuned.timings[linear])
        assert crossover.in_order and program.plan.crossovers[linear] == crossover
        assert all(1e-7 < taken < 1 for each in tuned.timings[linear].values() for taken in each.values())
    assert tuned.shares.keys() == program.plan.shares.keys() == tuned.share_timings.keys() and tuned.shares
    for attention, table in tuned.shares.items():
        print(attention, table, tuned.share_timings[attention])
        assert program.plan.shares[attention].chosen == table and table.starts[0][0] == 1
        assert set(tuned.share_timings[attention]) == set(sequences_at_once)
    tolerance = 2e-5 if storage == "float" else 2e-2
    tables: list[dict[str, Tuned] | None] = [None]
    tables += [dict.fromkeys(tuned.crossovers, crossover) for crossover in TABLES]
    tables += [dict.fromkeys(tuned.shares, shares) for shares in SHARES]
    for table in tables:
        if table is not None:
            program.tune(table)
        found = run_in_pieces(program, prompt, [9, 1, 2])
        error = ((found - own).square().mean().sqrt() / own.std()).item()
        assert error < tolerance, f"{table}: {error:.1e}"
