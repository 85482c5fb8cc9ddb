"""Measure on this machine which form of a linear is the fastest for how many rows.

A native program has up to three forms of every linear: row by row, flat (each weight is read once for all rows) and
GEMM (weights are unpacked into panels first). They give the same bits, so a table only changes speed.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llmc.runtime.batch import Piece, pack
from llmc.runtime.cpu_program import CpuProgram
from llmc.runtime.kv_cache import BlockPool, BlockTable
from llmc.runtime.session import BLOCK_SIZE
from llmc.runtime.tuning import Crossovers

ROWS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
"""Numbers of rows that are measured. They reach beyond the largest crossover: a form that never wins is never used."""
NEVER = 1 << 30
FORMS = {"rows": (NEVER, NEVER), "flat": (1, NEVER), "gemm": (1, 1)}
"""For each form the crossovers that choose it for any number of rows."""
GAIN = 0.99
"""Another form must take less than this share of the time of those before it: less is noise."""

Timings = Mapping[int, Mapping[str, float]]
"""Seconds of a step by rows and form."""


def crossovers(timings: Timings) -> tuple[int, int]:
    """The first number of rows for the flat and for the GEMM form, of what was measured for one shape."""
    _, flat, gemm = takeovers(timings, tuple(FORMS), NEVER)
    return flat, gemm


def takeovers(timings: Timings, forms: Sequence[str], never: int) -> list[int]:
    """The first number of rows for each of `forms`, which take over from each other in this order.

    A form begins where it beats all before it, at that and all larger numbers of rows up to where the next one begins;
    where it was measured alone it wins. One that never does begins where the next one does, the last one at `never`.
    """
    begins = [never]
    for place in reversed(range(1, len(forms))):
        begin = begins[0]
        for rows in sorted((rows for rows in timings if rows < begins[0]), reverse=True):
            taken = timings[rows]
            before = [taken[form] for form in forms[:place] if form in taken]
            if forms[place] not in taken or any(taken[forms[place]] >= GAIN * other for other in before):
                break
            begin = rows
        begins.insert(0, begin)
    return [1, *begins[:-1]]


def measure(program: CpuProgram, repetitions: int, progress: Callable[[str], None] = lambda text: None) -> Crossovers:
    """Measure every shape of a program, one at a time in whole steps. Afterwards the program uses what was found."""
    names = program.description.crossovers
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in names}
    program.allocate(-(-max(ROWS) // BLOCK_SIZE), BLOCK_SIZE)
    program.tune({name: FORMS["flat"] for name in names})
    for rows in ROWS:
        progress(f"{rows} rows")
        step = _step(program, rows)
        for name in names:
            found[name][rows] = _measured(program, name, step, repetitions)
    table = {name: crossovers(timings) for name, timings in found.items()}
    program.tune(table)
    return table


def _measured(program: CpuProgram, name: str, step: Callable[[], None], repetitions: int) -> dict[str, float]:
    """Median seconds of a step with each form of one shape; the forms take turns."""
    samples: dict[str, list[float]] = {form: [] for form in FORMS}
    for repetition in range(repetitions + 1):
        for form, rows in FORMS.items():
            program.tune({name: rows})
            began = time.perf_counter()
            step()
            if repetition:  # the first is a warm-up
                samples[form].append(time.perf_counter() - began)
    program.tune({name: FORMS["flat"]})
    return {form: statistics.median(seconds) for form, seconds in samples.items()}


def _step(program: CpuProgram, rows: int) -> Callable[[], None]:
    """One step of so many new tokens of one sequence, with logits after each."""
    pool = BlockPool(-(-rows // BLOCK_SIZE), BLOCK_SIZE)
    tokens = np.random.default_rng(rows).integers(0, program.description.vocabulary, rows).tolist()
    batch = pack([Piece(tokens, BlockTable(pool), "all")]).batch

    def step() -> None:
        program.step(batch)

    return step
