"""Fractions and ratios, from made-up samples whose answers are known."""

import pytest

from llmc.bench.costs import Costs
from llmc.bench.machine import Bandwidth, Peaks
from llmc.bench.results import BenchResult, EngineResult, Sample
from llmc.bench.tables import machine_lines, tables
from llmc.bench.workloads import Workload

COSTS = Costs(weight_bytes=900, token_operations=100, row_operations=1024, format="int4", layers=((10, "k <= q"),))
PREFILL = Workload("pp8", "prefill", 8, 0)
DECODE = Workload("tg4", "decode", 7, 4)
BATCH = Workload("b2", "decode", 7, 4, 2)


@pytest.fixture
def result() -> BenchResult:
    ours = EngineResult("llmc", "int4", costs=COSTS, weight_bytes=900)
    peer = EngineResult("llama.cpp", "q4_0", weight_bytes=1400)
    ours.samples = {
        "pp8": [Sample(0, 1000.0, 0.008), Sample(1, 500.0, 0.016)],
        "tg4": [Sample(0, 10.0, 0.1), Sample(1, 20.0, 0.1)],
        "b2": [Sample(0, 30.0, 0.1)],
    }
    peer.samples = {"tg4": [Sample(0, 5.0, 0.1), Sample(1, 5.0, 0.1)]}
    bandwidths = [Bandwidth(20_000.0, 10_000.0), Bandwidth(30_000.0, 40_000.0)]
    works = [PREFILL, DECODE, BATCH]
    return BenchResult("tiny", 2, "a processor", works, bandwidths, Peaks(1e5, None, 1e6), [ours, peer])


def test_decoding_is_held_against_the_bandwidth_of_its_round(result: BenchResult) -> None:
    """A step reads 900 bytes of weights and 10 for each of the 10 keys up to position 9."""
    assert DECODE.mean_position == 9
    assert result.fraction(result.engines[0], DECODE) == pytest.approx((10 * 1000 / 20_000 + 20 * 1000 / 40_000) / 2)
    assert result.fraction(result.engines[1], DECODE) == pytest.approx((5 * 1500 / 20_000 + 5 * 1500 / 40_000) / 2)


def test_a_batch_reads_the_weights_once_and_each_cache(result: BenchResult) -> None:
    assert result.fraction(result.engines[0], BATCH) == pytest.approx(15 * (900 + 2 * 100) / 20_000)


def test_prefill_is_held_against_the_peak_of_its_format(result: BenchResult) -> None:
    assert result.fraction(result.engines[0], PREFILL) == pytest.approx(750 * (100 + 1024 / 8) / 1e6)
    assert result.fraction(result.engines[1], PREFILL) is None, "it was not measured"


def test_ratios_are_taken_within_rounds(result: BenchResult) -> None:
    assert result.ratio(result.engines[1], "tg4") == pytest.approx(3.0)
    assert result.ratio(result.engines[1], "pp8") is None


def test_a_machine_without_an_instruction_is_held_against_float32() -> None:
    assert Peaks(3.0, None, None).of("int8") == 3.0


def test_the_tables_show_what_is_known(result: BenchResult) -> None:
    result.engines[0].accuracy = {"kl": 0.01, "perplexity": 12.5, "top1": 0.75}
    speeds, needs = tables(result)
    assert [row[:2] for row in speeds.rows] == [
        ["llmc int4", "pp8"],
        ["llmc int4", "tg4"],
        ["llama.cpp q4_0", "tg4"],
        ["llmc int4", "b2"],
    ]
    assert speeds.rows[2][-1] == "3.00"
    assert needs.rows[0][-3:] == ["0.0100", "12.50", "75.0%"]
    assert needs.rows[1][-3:] == ["not given"] * 3
    assert {len(line.split("|")) for line in list(speeds.markdown())[2:]} == {len(speeds.columns) + 2}
    assert next(machine_lines(result)) == "tiny on 2 threads of a processor"
