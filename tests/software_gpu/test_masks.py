"""Lists of blocks on the software GPU: each step makes those that its attentions go over."""

import pytest
from support import software_driver
from support.masked_models import MASKS, masked_model, prompt

from llmc.bench.tune_attention import Measured, measure_shares
from llmc.runtime.cuda.cuda_device import CudaDevice
from llmc.zoo.oracle import logits_of
from llmc.zoo.steps import run_in_pieces


@pytest.mark.parametrize("target", ["sm_90"])
def test_a_mask_by_lists_shows_what_eager_sees(target: str) -> None:
    """Also with the keys divided over other numbers of programs, which measurements find."""
    module, tokens = masked_model(MASKS["each second block"][0]), prompt().tolist()
    program = software_driver.on_software_gpu(target)(module)
    assert any("blocks" in kernel.name for kernel in program.plan.kernels)
    expected = logits_of(module, tokens)
    for _ in range(2):
        found = run_in_pieces(program, tokens, [178, 1, 1])
        assert ((found - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item() < 2e-5
        assert isinstance(program.device, CudaDevice)
        measured = Measured(program, program.device, repetitions=1, rotated=1)
        tables, timings = measure_shares(measured, context=200, source="measured", sequences=(1, 2), contexts=(150,))
        assert tables.keys() == timings.keys() == program.plan.shares.keys()
        program.tune(tables)
