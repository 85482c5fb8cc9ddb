"""Models compiled for a GPU and run as PTX: eager's logits, and the tokens of the reference program."""

import functools

import pytest
import torch
from support import gpu_zoo, software_driver
from support.gpu_zoo import OnGpu

from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.sample import SamplingParams

GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)
DRAWN = SamplingParams(max_new_tokens=10, temperature=1.3, top_k=20, top_p=0.9, min_p=0.02, seed=4, ignore_eos=True)
SM_90 = pytest.mark.parametrize("target", ["sm_90"], indirect=True)


@functools.cache
def _programs(target: str) -> OnGpu:
    """Compiles each model once: tests that use the same one share its program."""
    compile_anew, made = software_driver.on_software_gpu(target), dict[object, GpuProgram]()

    def on_gpu(module: torch.nn.Module, **options: object) -> GpuProgram:
        key = (type(module), next(module.parameters()).dtype, *sorted(options.items()))
        if key not in made:
            made[key] = compile_anew(module, **options)
        software_driver.driver(software_driver.CAPABILITIES[target])
        return made[key]

    return on_gpu


@pytest.fixture
def on_gpu(target: str) -> OnGpu:
    return _programs(target)


def test_a_model_matches_eager(on_gpu: OnGpu) -> None:
    gpu_zoo.matches_eager(on_gpu, "llama")


@SM_90
@pytest.mark.parametrize(
    "family", ["gemma2", *(pytest.param(name, marks=pytest.mark.sweep) for name in ("qwen3", "mixtral", "gpt2"))]
)
def test_a_family_matches_eager(on_gpu: OnGpu, family: str) -> None:
    gpu_zoo.matches_eager(on_gpu, family)


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_tokens_are_those_of_the_reference(on_gpu: OnGpu, params: SamplingParams) -> None:
    gpu_zoo.chooses_tokens_as_the_reference(on_gpu, "llama", params)


@pytest.mark.parametrize(
    "storage", ["int4", *(pytest.param(name, marks=pytest.mark.sweep) for name in ("float", "int8", "fp8"))]
)
def test_16_bits_and_quantized_weights_compute_what_the_reference_does(on_gpu: OnGpu, storage: str) -> None:
    gpu_zoo.computes_what_the_reference_does(on_gpu, "llama", quantize=storage, kv_dtype="bfloat16")


@pytest.mark.parametrize("kind", ["int8", pytest.param("fp8", marks=pytest.mark.sweep)])
def test_caches_of_eight_bits_compute_what_the_reference_does(on_gpu: OnGpu, kind: str) -> None:
    gpu_zoo.computes_what_the_reference_does(on_gpu, "llama", quantize="float", kv_dtype=kind)


@pytest.mark.parametrize("sequences_together", [3, 9])
def test_tokens_do_not_depend_on_the_batch(on_gpu: OnGpu, sequences_together: int) -> None:
    gpu_zoo.tokens_do_not_depend_on_the_batch(on_gpu, sequences_together)


@SM_90
def test_steps_give_the_same_bits_again(on_gpu: OnGpu) -> None:
    gpu_zoo.steps_give_the_same_bits_again(on_gpu)
