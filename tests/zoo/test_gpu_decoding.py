"""Tokens that a GPU program chooses by itself, without a GPU: those that the reference program's host chooses."""

import pytest
from support.interpreted_device import InterpretedDevice
from zoo.test_gpu import VOCAB, gpu_program

import llmc
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session
from llmc.zoo import tiny

PROMPTS = [[9]]
PARAMS = {
    "likeliest": SamplingParams(max_new_tokens=10, ignore_eos=True),
    "drawn": SamplingParams(max_new_tokens=4, temperature=1.3, top_k=20, top_p=0.9, min_p=0.02, seed=4),
}


@pytest.mark.slow
def test_tokens_are_chosen_on_the_device_as_on_the_host() -> None:
    module = tiny("llama")
    program = gpu_program(module)
    reference = llmc.compile(module, program="reference", prove=False).session
    ranges = Ranges(tokens=reference.ranges.tokens, sequences=8, context=reference.ranges.context)
    session = Session(program, ModelFacts(VOCAB), ranges, block_size=program.block_multiple)
    for name, params in PARAMS.items():
        have, want = session.generate(PROMPTS, params), reference.generate(PROMPTS, params)
        assert [one.token_ids for one in have] == [one.token_ids for one in want], name
    device = program.device
    assert isinstance(device, InterpretedDevice)
    assert device.replays == (1 + 2) + 4, "eight tokens at once and two by one; four are too few for that"
