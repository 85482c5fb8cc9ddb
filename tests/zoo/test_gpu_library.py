"""Families on generated kernels around a library's products, without a GPU: eager's logits, for prompts and batches."""

import pytest
import torch
from support.interpreted_device import InterpretedDevice

import llmc
from llmc.ir.weights import bytes_of_each
from llmc.runtime.crossover import NEVER, Crossover
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session
from llmc.zoo import tiny
from llmc.zoo.checks import prefill, ragged, sequences
from llmc.zoo.oracle import logits_of
from llmc.zoo.steps import run_in_pieces

VOCAB = 128
FAMILIES = (
    "llama",
    "gemma2",
    *(pytest.param(name, marks=pytest.mark.sweep) for name in ("qwen3", "gpt2", "phi", "cohere2", "mixtral")),
    "qwen2_moe",
)
TOLERANCE = 2e-5
"""Root mean square of the error over that of the logits: both compute in float32, in another order."""
FROM_TWO_ROWS = Crossover(1, 2, "test", 2)


def programs(
    module: torch.nn.Module, *crossovers: Crossover, multiplies: bool = True, **options: object
) -> list[tuple[GpuProgram, InterpretedDevice]]:
    """The program of a module on devices of their own, one for each table of crossovers."""
    build = llmc.compile(module, target="sm_90", prove=False, **options)._build
    source = build.gpu.sources["sm_90"]
    weights = dict(bytes_of_each(build.model.weights))
    made = []
    for crossover in crossovers:
        device = InterpretedDevice(source.text, multiplies=multiplies)
        table = dict.fromkeys(source.plan.crossovers, crossover)
        made.append((GpuProgram(source.plan, device, weights, table), device))
    return made


def error(have: torch.Tensor, expected: torch.Tensor) -> float:
    """The root mean square of the difference over that of what is expected."""
    return ((have - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_what_eager_computes(family: str) -> None:
    module = tiny(family)
    ((program, device),) = programs(module, FROM_TWO_ROWS)
    prompts = sequences(VOCAB)
    expected = [logits_of(module, prompt) for prompt in prompts]
    found = {"prefill": prefill(program, prompts), "ragged": ragged(program, prompts)}
    pieces = run_in_pieces(program, prompts[0], [1, 13, 1, 1])
    errors = {
        name: max(error(logits, expected[which]) for which, logits in rows.items())
        for name, rows in {**found, "pieces": {0: pieces}}.items()
    }
    assert max(errors.values()) < TOLERANCE, errors
    assert device.products["f32"] > 0


@pytest.mark.parametrize(
    ("storage", "bound"),
    [
        ("float", 2e-3),
        ("int4", 0.02),
        *(pytest.param(name, 0.02, marks=pytest.mark.sweep) for name in ("int8", "int6", "fp8")),
    ],
)
def test_weights_of_fewer_bits_compute_what_the_program_itself_does(storage: str, bound: float) -> None:
    """For the library they are rounded to 16 bits, as activations are for both."""
    module = tiny("llama").bfloat16()
    (own, _), (library, device) = programs(module, Crossover(1, 2, "test", NEVER), FROM_TWO_ROWS, quantize=storage)
    prompt = sequences(VOCAB)[0]
    have, expected = (run_in_pieces(program, prompt, [9]) for program in (library, own))
    assert error(have, expected) < bound
    assert device.products["bf16"] > 0


def test_batches_are_recorded_with_their_products() -> None:
    module = tiny("llama")
    (own, _), (library, device) = programs(module, Crossover(1, 2, "test", NEVER), FROM_TWO_ROWS)
    prompts = [prompt[:5] for prompt in sequences(VOCAB)[:3]]
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    tokens = []
    for program in (own, library):
        session = Session(program, ModelFacts(VOCAB), Ranges(64, 8, 64), block_size=program.block_multiple)
        tokens.append([one.token_ids for one in session.generate(prompts, params)])
    assert tokens[0] == tokens[1]
    assert device.replays > 0, "decoding is recorded"
    assert device.products["f32"] > len(prompts)


def test_a_device_without_a_library_computes_the_same_with_the_programs_own_kernels() -> None:
    module = tiny("llama")
    (program, device), _ = programs(module, FROM_TWO_ROWS, FROM_TWO_ROWS, multiplies=False)
    prompt = sequences(VOCAB)[0]
    assert error(run_in_pieces(program, prompt, [9]), logits_of(module, prompt)) < TOLERANCE
    assert not device.products
