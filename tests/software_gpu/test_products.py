"""Products by a library in programs on a GPU in software: the kernels around them as they are compiled."""

import pytest
from support.gpu_zoo import OnGpu
from support.software_driver import library, on_software_gpu

from llmc.runtime.crossover import NEVER, Crossover
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session
from llmc.zoo import tiny
from llmc.zoo.checks import sequences
from llmc.zoo.oracle import logits_of
from llmc.zoo.steps import run_in_pieces

pytestmark = pytest.mark.parametrize("target", ["sm_90"], indirect=True)
VOCAB = 128
OWN, LIBRARY = Crossover(1, 2, "test", NEVER), Crossover(1, 2, "test", 2)


@pytest.fixture
def on_gpu(target: str) -> OnGpu:
    return on_software_gpu(target, cublas=library()._name)


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma2", marks=pytest.mark.sweep)])
def test_prompts_match_eager(on_gpu: OnGpu, family: str) -> None:
    module, prompt = tiny(family), sequences(VOCAB)[0]
    program = on_gpu(module)
    program.tune(dict.fromkeys(program.plan.crossovers, LIBRARY))
    found, expected = run_in_pieces(program, prompt, [1, 13]), logits_of(module, prompt)
    assert ((found - expected).square().mean().sqrt() / expected.std()).item() < 2e-5


@pytest.mark.sweep
@pytest.mark.parametrize(("storage", "bound"), [("float", 2e-3), ("int4", 0.02), ("fp8", 0.02)])
def test_16_bits_compute_what_the_programs_own_kernels_do(on_gpu: OnGpu, storage: str, bound: float) -> None:
    program, prompt = on_gpu(tiny("llama").bfloat16(), quantize=storage), sequences(VOCAB)[0]
    found = []
    for crossover in (OWN, LIBRARY):
        program.tune(dict.fromkeys(program.plan.crossovers, crossover))
        found.append(run_in_pieces(program, prompt, [9]))
    assert ((found[1] - found[0]).square().mean().sqrt() / found[0].std()).item() < bound


@pytest.mark.sweep
def test_products_are_recorded(on_gpu: OnGpu) -> None:
    program = on_gpu(tiny("llama"))
    session = Session(program, ModelFacts(VOCAB), Ranges(64, 8, 64), block_size=program.block_multiple)
    prompts = [prompt[:5] for prompt in sequences(VOCAB)[:3]]
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    made = []
    for crossover in (OWN, LIBRARY):
        program.tune(dict.fromkeys(program.plan.crossovers, crossover))
        made.append([one.token_ids for one in session.generate(prompts, params)])
    assert made[0] == made[1]
