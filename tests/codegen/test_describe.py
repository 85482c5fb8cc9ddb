"""The explanation of a generated program."""

import pytest

import llmc
from llmc.codegen.explanation import ProgramExplanation
from llmc.runtime.checked_json import canonical
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
