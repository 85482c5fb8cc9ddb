"""Masks of models on generated Triton kernels: logits of eager, over ranges and lists of blocks."""

import pytest
from support.interpreted_device import InterpretedDevice
from support.masked_models import MASKS, masked_model, prompt

import llmc
from llmc.ir.weights import bytes_of_each
from llmc.runtime.cuda.program import GpuProgram
from llmc.zoo.oracle import logits_of
from llmc.zoo.steps import run_in_pieces


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_shows_what_eager_sees(name: str) -> None:
    seen, note = MASKS[name]
    module, tokens = masked_model(seen), prompt().tolist()
    build = llmc.compile(module, target="sm_90", prove=False)._build
    source = build.gpu.sources["sm_90"]
    assert source.notes and all(note in each for each in source.notes.values())
    program = GpuProgram(source.plan, InterpretedDevice(source.text), dict(bytes_of_each(build.model.weights)))
    found = run_in_pieces(program, tokens, [178, 1])
    expected = logits_of(module, tokens)
    error = ((found - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()
    assert error < 2e-5
