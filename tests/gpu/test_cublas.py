"""Products by cuBLAS for real: sums of every dtype, the same bits again, recorded, and in programs of whole models."""

import numpy as np
import pytest
import torch
from support.gpu import on_gpu

from llmc.runtime.crossover import NEVER, Crossover
from llmc.runtime.cuda.cublas import find_cublas
from llmc.runtime.cuda.cuda_device import CudaDevice
from llmc.runtime.cuda.device import Place
from llmc.runtime.cuda.driver import Driver, Gpu
from llmc.runtime.cuda.plan import ALWAYS, Argument, Number, Product
from llmc.zoo import tiny
from llmc.zoo.checks import check, require, sequences
from llmc.zoo.oracle import logits_of
from llmc.zoo.steps import run_in_pieces

VOCAB = 128
DTYPES: dict[Number, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
OWN, LIBRARY = Crossover(1, 2, "test", NEVER), Crossover(1, 2, "test", 2)


@pytest.fixture
def device(driver: Driver, gpu: Gpu) -> CudaDevice:
    made = CudaDevice(driver, gpu, {}, find_cublas(driver.version))
    if not made.multiplies:
        pytest.skip(made.products)
    print(made.products)
    return made


def uploaded(device: CudaDevice, value: torch.Tensor) -> Place:
    array = value.contiguous().view(torch.uint8).reshape(-1).numpy()
    place = Place(device.allocate(array.nbytes), 0)
    device.upload(place, array)
    return place


def downloaded(device: CudaDevice, place: Place, rows: int, columns: int) -> torch.Tensor:
    found = np.empty((rows, columns), np.float32)
    device.download(place, found)
    return torch.from_numpy(found)


@pytest.mark.parametrize(("rows", "n", "k"), [(1, 16, 64), (100, 1000, 256), (513, 3072, 2048)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_those_of_exact_products(device: CudaDevice, dtype: Number, rows: int, n: int, k: int) -> None:
    random = torch.Generator().manual_seed(rows + n)
    weight, inputs = (torch.randn(shape, k, generator=random).to(DTYPES[dtype]) for shape in (n, rows))
    places = [uploaded(device, weight), uploaded(device, inputs), Place(device.allocate(4 * rows * n), 0)]
    argument = Argument("arena")
    product = Product(argument, argument, argument, dtype, n, k, n, "T", ALWAYS, 0)
    graph = device.capture(lambda: device.multiply(product, rows, *places))  # the first product may be a recorded one
    graph.replay()
    recorded = downloaded(device, places[2], rows, n)
    device.multiply(product, rows, *places)
    direct = downloaded(device, places[2], rows, n)
    assert torch.equal(recorded, direct), "the same bits, recorded or not"
    expected = inputs.double() @ weight.double().T
    size = inputs.double().abs() @ weight.double().abs().T
    assert ((direct - expected).abs() / size).max() < 2e-6, "sums are fp32, and factors are not rounded to TF32"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen2_moe"])
def test_a_family_matches_eager_with_the_library(device: CudaDevice, family: str) -> None:
    module = tiny(family)
    program = on_gpu(module)
    assert program.device.multiplies
    program.tune(dict.fromkeys(program.plan.crossovers, LIBRARY))
    require(check(program, module, VOCAB), family)
    prompt = sequences(VOCAB)[0]
    found, expected = run_in_pieces(program, prompt, [1, 13, 1, 1]), logits_of(module, prompt)
    assert ((found - expected).square().mean().sqrt() / expected.std()).item() < 2e-5


@pytest.mark.parametrize("storage", ["float", "int8", "int4", "fp8"])
def test_16_bits_compute_what_the_programs_own_kernels_do(device: CudaDevice, storage: str) -> None:
    program, prompt = on_gpu(tiny("llama").bfloat16(), quantize=storage), sequences(VOCAB)[0]
    assert program.device.multiplies
    found = []
    for crossover in (OWN, LIBRARY):
        program.tune(dict.fromkeys(program.plan.crossovers, crossover))
        found.append(run_in_pieces(program, prompt, [9, 1]))
    assert ((found[1] - found[0]).square().mean().sqrt() / found[0].std()).item() < (
        2e-3 if storage == "float" else 0.02
    )
