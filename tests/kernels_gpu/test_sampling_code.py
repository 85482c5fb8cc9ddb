"""Kernels that choose tokens as machine code: each logit is read once by each launch, and sums are not waited for."""

from pathlib import Path

import pytest

from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.compile import compile_kernels
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_sampling import PART, emit_sampling
from llmc.codegen.triton.sass import read_sass

MOST_A_LOGIT = 150
"""Instructions up to where a program says that it has come to its end, penalties and log-probabilities included, for
each logit of a thread: the eight warps of a part issue them in 1.3 us, all parts at a time, and a step takes 700."""


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [128256, 262144])
def test_logits_are_read_once_and_sums_are_not_waited_for(vocabulary: int, tmp_path: Path) -> None:
    context = Context(Target.preset("sm_90"), Crossovers(), (), 128, vocabulary)
    kernels = {f"sampling_{number}": draft.kernel for number, draft in enumerate(emit_sampling(context))}
    waited = {"sampling_0": 1, "sampling_1": 1, "sampling_2": 2}  # the last of the programs, and places in a list
    for name, binary in compile_kernels(kernels, "sm_90", cache=tmp_path).items():
        machine, logits = read_sass(binary.code), PART // binary.threads
        names = [item.name for item in machine.instructions]
        assert machine.stack == 0, f"{name} spills"
        assert names.count("ATOMG") == waited[name], f"{name}: what an atomic operation returns is waited for"
        arrival = max(place for place, item in enumerate(names) if item == "ATOMG")
        before = machine.instructions[:arrival]
        wide = sum(item.name == "LDG" and item.width == 16 for item in before)
        assert 4 * wide == logits, f"{name}: {wide} loads of 16 bytes for {logits} logits"
        assert arrival < MOST_A_LOGIT * logits, f"{name}: {arrival} instructions for {logits} logits"
        if name == "sampling_1":
            assert names.count("REDG") == 2 * logits, "a mass and a number for each"
