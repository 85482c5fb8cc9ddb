"""Crossovers choose launches: each number of rows has one variant, whatever the table says, or it is refused."""

import dataclasses

import pytest
from support.tiny_gpu_program import PLAN

from llmc.errors import ArtifactRejected, BadOption
from llmc.runtime.crossover import NEVER, Crossover
from llmc.runtime.cuda.plan import Candidate, Launch, Plan, When
from llmc.runtime.cuda.selection import select, shares

LINEAR = "8x7:f32"
LANES = [("gemv", 1, 1), ("gemv", 2, 2), ("gemv", 3, 3)]
TILES = [("flat", 1, 8), ("flat", 9, 16), ("flat", 17, 64), ("flat", 17, 64)]
BLOCKS = [("gemm", 2, None), ("gemm", 2, None)]
LIBRARY = [("library", 5, None)]
ROWS = (*range(1, 70), 128, 1000, 1 << 20)


def candidates(*groups: list[tuple[str, int, int | None]]) -> list[Candidate]:
    return [Candidate(LINEAR, *each) for group in groups for each in group]


def plan_of(made: list[Candidate], own: Crossover) -> Plan:
    """A plan whose launches are these, of one region, between others."""
    first, *_, last = PLAN.launches
    launches = [dataclasses.replace(last, when=When("T"), candidate=each, region=7) for each in made]
    return dataclasses.replace(PLAN, launches=(first, *launches, last), crossovers={LINEAR: own})


def held(plan: Plan, rows: int) -> list[Candidate]:
    """The candidates that take place in a step of so many rows."""
    launches: list[Launch] = [each for each in plan.launches if each.when.holds({"T": rows, "B": 1, "R": 1})]
    return [each.candidate for each in launches if each.candidate is not None]


@pytest.mark.parametrize(
    ("groups", "crossover", "expected"),
    [
        ([LANES, TILES, BLOCKS], (2, 20), {"gemv": (1, 1), "flat": (2, 19), "gemm": (20, None)}),
        ([LANES, TILES, BLOCKS], (NEVER, NEVER), {"gemv": (1, 3), "flat": (4, 64), "gemm": (65, None)}),
        ([LANES, TILES, BLOCKS], (1, 1), {"flat": (1, 1), "gemm": (2, None)}),
        ([LANES, TILES, BLOCKS], (3, 3), {"gemv": (1, 2), "gemm": (3, None)}),
        ([TILES, BLOCKS], (4, 200), {"flat": (1, 64), "gemm": (65, None)}),
        ([LANES, TILES, BLOCKS, LIBRARY], (2, 9, 9), {"gemv": (1, 1), "flat": (2, 8), "library": (9, None)}),
        ([TILES, BLOCKS, LIBRARY], (1, 1, 1), {"flat": (1, 1), "gemm": (2, 4), "library": (5, None)}),
        ([TILES, LIBRARY], (1, 30, NEVER), {"flat": (1, 64), "library": (65, None)}),
    ],
)
def test_a_variant_serves_from_its_crossover_on_as_far_as_it_can(
    groups: list[list[tuple[str, int, int | None]]], crossover: tuple[int, ...], expected: dict[str, object]
) -> None:
    flat, gemm, *library = crossover
    assert shares(candidates(*groups), Crossover(flat, gemm, "test", *library)) == expected


@pytest.mark.parametrize("flat", [1, 2, 3, 4, 9, 64, 65, NEVER])
@pytest.mark.parametrize("gemm", [1, 2, 9, 17, 64, 65, 66, 1000, NEVER])
@pytest.mark.parametrize("library", [1, 5, 128, NEVER])
def test_every_number_of_rows_has_one_variant(flat: int, gemm: int, library: int) -> None:
    crossover = Crossover(flat, max(flat, gemm), "test", max(flat, gemm, library))
    given = plan_of(candidates(LANES, TILES, BLOCKS, LIBRARY), Crossover(4, 65))
    chosen = select(given, {LINEAR: crossover, "1x1:f32": Crossover(9, 2)})
    assert chosen.crossovers == {LINEAR: crossover}
    assert [launch.candidate for launch in chosen.launches] == [launch.candidate for launch in given.launches]
    assert (chosen.launches[0], chosen.launches[-1]) == (given.launches[0], given.launches[-1])
    for rows in ROWS:
        found = held(chosen, rows)
        assert len({each.variant for each in found}) == 1, f"{rows} rows: {found}"
        for each in found:
            assert each.least <= rows and (each.most is None or rows <= each.most)
        # All launches of the variant that take so many rows, not only some.
        same = [each for each in candidates(LANES, TILES, BLOCKS, LIBRARY) if each.variant == found[0].variant]
        able = [each for each in same if each.least <= rows and (each.most is None or rows <= each.most)]
        assert found == able


def test_a_table_can_be_replaced_by_another() -> None:
    given = plan_of(candidates(LANES, TILES, BLOCKS), Crossover(4, 65))
    own, other = select(given), {LINEAR: Crossover(1, 2, "measured")}
    assert select(select(given, other), {LINEAR: Crossover(4, 65)}) == own
    assert select(own) == own


def test_a_variant_that_cannot_run_here_is_passed_over() -> None:
    chosen = select(plan_of(candidates(TILES, BLOCKS, LIBRARY), Crossover(1, 9, "test", 9)), without={"library"})
    assert {each.variant for rows in ROWS for each in held(chosen, rows)} == {"flat", "gemm"}


@pytest.mark.parametrize("crossover", [Crossover(0, 2), Crossover(9, 2), Crossover(2, 9, "", 8), Crossover(1, 1 << 40)])
def test_crossovers_out_of_order_are_refused(crossover: Crossover) -> None:
    with pytest.raises(BadOption, match=r"crossovers of 8x7:f32: .*expected 1 <= flat <= gemm <= library"):
        select(plan_of(candidates(TILES, BLOCKS), Crossover(1, 9)), {LINEAR: crossover})


@pytest.mark.parametrize(
    ("groups", "missing"),
    [
        ([LANES, TILES], "65 rows"),
        ([BLOCKS], "1 rows"),
        ([LANES, [("flat", 6, 64)], BLOCKS[:0]], "4 rows"),
        ([[("flat", 1, 8), ("flat", 10, None)]], "9 rows"),
    ],
)
def test_a_number_of_rows_that_nobody_serves_is_refused(
    groups: list[list[tuple[str, int, int | None]]], missing: str
) -> None:
    with pytest.raises(ArtifactRejected, match=f"nothing computes 8x7:f32 of region 7 for {missing}"):
        select(plan_of(candidates(*groups), Crossover(1, 9)))
