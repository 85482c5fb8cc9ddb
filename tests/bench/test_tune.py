"""Crossovers from timings that are made up, and the measurement on a program that only counts."""

from types import SimpleNamespace

import numpy as np
import pytest

from llmc.bench.tune import FORMS, NEVER, ROWS, crossovers, measure


def _timings(flat: int, gemm: int) -> dict[int, dict[str, float]]:
    """Row by row is best below `flat` rows, GEMM from `gemm` on."""
    return {
        rows: {
            "rows": 1.0 * rows,
            "flat": (0.5 if rows >= flat else 2.0) * rows,
            "gemm": (0.1 if rows >= gemm else 99.0) * rows,
        }
        for rows in ROWS
    }


@pytest.mark.parametrize("pair", [(2, 16), (4, 64), (6, NEVER), (NEVER, NEVER), (8, 8)])
def test_a_form_begins_where_it_wins_from_then_on(pair: tuple[int, int]) -> None:
    assert crossovers(_timings(*pair)) == pair


def test_a_single_win_is_noise() -> None:
    timings = _timings(NEVER, NEVER)
    timings[8]["gemm"] = 0.01
    timings[16]["flat"] = timings[16]["rows"] * 0.995
    assert crossovers(timings) == (NEVER, NEVER)


class _Counting:
    """Looks like a native program."""

    def __init__(self) -> None:
        self.description = SimpleNamespace(crossovers=("16x32:int4", "64x16:int8"), vocabulary=64)
        self.table: dict[str, tuple[int, int]] = {}
        self.steps: list[tuple[int, dict[str, tuple[int, int]]]] = []

    def allocate(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks * block_size >= max(ROWS)

    def tune(self, table: dict[str, tuple[int, int]]) -> None:
        self.table.update(table)

    def step(self, batch: object) -> np.ndarray:
        self.steps.append((len(batch.tokens), dict(self.table)))
        return np.zeros((len(batch.rows), 64), np.float32)


def test_one_shape_is_varied_at_a_time_and_the_result_is_used() -> None:
    program = _Counting()
    found = measure(program, 2)
    assert set(found) == set(program.description.crossovers)
    assert program.table == found
    assert {rows for rows, _ in program.steps} == set(ROWS)
    assert all(FORMS["flat"] in table.values() for _, table in program.steps)
    assert len(program.steps) == len(ROWS) * 2 * len(FORMS) * 3
