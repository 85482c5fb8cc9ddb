"""The explanation of a generated program."""

import pytest

import llmc
from llmc.codegen.explanation import ProgramExplanation, StepSizes
from llmc.measure_regions import measured, sample_batch
from llmc.runtime.checked_json import canonical
from llmc.runtime.manifest import Ranges
from llmc.zoo.families import tiny


@pytest.fixture(scope="module")
def native():
    return llmc.compile(tiny("llama"), prove=False, program="cpu", quantize="int4")._build


@pytest.fixture(scope="module")
def program(native) -> ProgramExplanation:
    return native.native.explain(native.model)


def test_a_layer_is_five_regions_in_a_loop(program: ProgramExplanation) -> None:
    (loop,) = program.loops
    assert (loop.period, loop.count) == (5, 2)
    body = program.regions[loop.start : loop.start + loop.period]
    assert [program.kernel(region.kernel).kind for region in body] == [
        "linear", "attention", "linear", "linear", "linear",
    ]  # fmt: skip
    fused = [program.kernel(region.kernel).fused for region in body]
    assert fused[0] == ("rms_norm", "linear", "rope", "cache write")
    assert fused[3] == ("rms_norm", "linear", "silu gate")
    assert [region.place for region in body][2] == "model.layers.*.self_attn.o_proj"


def test_kernels_are_found_in_the_source(native, program: ProgramExplanation) -> None:
    lines = native.native.source.text.splitlines()
    for kernel in program.kernels:
        assert lines[kernel.line - 1].startswith(f"void {kernel.name}(Team")


def test_every_region_has_its_cost(program: ProgramExplanation) -> None:
    for region in program.regions:
        decode, prefill = region.work["decode"], region.work["prefill"]
        assert 0 < decode.bytes <= prefill.bytes
        assert 0 <= decode.flops <= prefill.flops
        assert 0 < decode.predicted <= prefill.predicted
    head = program.regions[-1]
    assert head.on_logits and head.work["decode"] == head.work["prefill"]


def test_it_is_the_same_after_reading_and_every_time(native, program: ProgramExplanation) -> None:
    written = canonical(program.to_json())
    assert ProgramExplanation.from_json(written) == program
    assert canonical(native.native.explain(native.model).to_json()) == written


def test_every_region_can_be_measured(native, program: ProgramExplanation) -> None:
    running = native.native.open(native.model)
    try:
        found = measured(program, running, Ranges(tokens=600, sequences=1, context=600), repetitions=1)
        small = measured(program, running, Ranges(tokens=64, sequences=1, context=600), repetitions=1)
    finally:
        running.close()
    times = [region.work["decode"].measured for region in found.regions]
    assert len(times) == running.description.regions
    assert all(time is not None and 0 < time < 10 for time in times)
    assert all(region.work["prefill"].measured is not None for region in found.regions)
    assert all(region.work["prefill"].measured is None for region in small.regions)


def test_a_sample_step_reads_as_many_keys_as_it_says() -> None:
    decode = sample_batch(StepSizes(tokens=3, rows=3, sequences=3, context=100), 50)
    assert decode.positions.tolist() == [100, 100, 100]
    assert decode.lengths.tolist() == [101, 101, 101]
    assert decode.starts.tolist() == [0, 1, 2, 3] and decode.rows.tolist() == [0, 1, 2]
    assert len(set(decode.slots.tolist())) == 3
    prefill = sample_batch(StepSizes(tokens=64, rows=1, sequences=1, context=32), 50)
    assert prefill.positions.tolist() == list(range(64)) and prefill.rows.tolist() == [63]
