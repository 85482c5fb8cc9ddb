"""Tuning on a GPU: what is measured there is a table that the program can use, and computes the same with."""

import pytest
from support.gpu import on_gpu

from llmc.bench.tune_gpu import measure
from llmc.runtime.cuda.cuda_device import CudaDevice
from llmc.zoo import tiny
from llmc.zoo.checks import sequences
from llmc.zoo.steps import run_in_pieces

VOCAB = 128
ROWS = (1, 2, 3, 4, 8, 9, 16, 17, 64, 65, 256)


@pytest.mark.parametrize(("storage", "tolerance"), [("float", 2e-5), ("int4", 2e-2)])
def test_a_tuned_program_computes_the_same(storage: str, tolerance: float) -> None:
    program, prompt = on_gpu(tiny("llama"), quantize=storage), sequences(VOCAB)[0]
    before = run_in_pieces(program, prompt, [9, 1, 2, 1])
    assert isinstance(program.device, CudaDevice)
    tuned = measure(program, program.device, context=64, repetitions=3, source="measured here", rows=ROWS)
    for linear, crossover in tuned.crossovers.items():
        print(linear, crossover, tuned.timings[linear][1])
        assert crossover.in_order and program.plan.crossovers[linear] == crossover
        seconds = [taken for each in tuned.timings[linear].values() for taken in each.values()]
        assert all(1e-7 < taken < 1 for taken in seconds), seconds
    after = run_in_pieces(program, prompt, [9, 1, 2, 1])
    assert ((after - before).square().mean().sqrt() / before.std()).item() < tolerance
