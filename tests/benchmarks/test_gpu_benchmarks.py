"""What of the benchmarks on a GPU runs without one: that they import, their models, and what they compare with."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from benchmarks import gpu_attention, gpu_end_to_end, gpu_limits, gpu_linears, gpu_models
from support.interpreted_device import InterpretedDevice
from support.sparse_llama import LLAMA_1B

import llmc
from llmc.ir.weights import bytes_of_each
from llmc.runtime.cuda.device import Grid, Place
from llmc.runtime.cuda.plan import Kernel, Product
from llmc.runtime.cuda.program import GpuProgram
from llmc.zoo.oracle import logits_of

TINY = dataclasses.replace(LLAMA_1B, layers=2, width=64, inner=96, heads=4, key_heads=2, head=16, vocabulary=200)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_models.SHAPES, "tiny", TINY)


def test_all_can_be_started() -> None:
    assert all(callable(module.main) for module in (gpu_attention, gpu_end_to_end, gpu_limits, gpu_linears))


def test_models_have_random_weights_and_the_tables_of_their_config() -> None:
    module = gpu_models.random_llama("tiny")
    assert module.lm_head.weight.data_ptr() == module.model.embed_tokens.weight.data_ptr()
    assert 0.01 < module.model.layers[1].mlp.up_proj.weight.float().std() < 0.03
    frequencies = module.model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 500000.0 ** (-torch.arange(0, 16, 2) / 16))
    assert torch.isfinite(logits_of(module.float(), [1, 2, 3])).all()


def test_the_decoder_that_is_compared_with_takes_the_likeliest_tokens() -> None:
    module = gpu_models.random_llama("tiny").float()
    decoder = gpu_end_to_end.TorchDecoder(module, 40, mode=None)
    made, seconds = decoder.decode([5, 7, 9], 6)
    again, _ = decoder.decode([5, 7, 9], 6)
    assert made == again and seconds > 0
    for place, token in enumerate(made):
        assert logits_of(module, [5, 7, 9, *made[:place]])[-1].argmax() == token


def test_the_attention_that_is_compared_with_has_the_shapes_of_the_model() -> None:
    queries, keys, values = gpu_attention.tensors("tiny", 128, "cpu")
    assert (queries[0].shape, keys[0].shape) == ((1, 4, 1, 16), (1, 2, 128, 16))
    found = gpu_attention.sdpa(queries[0].float(), keys[0].float(), values[0].float())
    weights = (queries[0].float() @ keys[0].float().repeat_interleave(2, 1).mT / 4).softmax(-1)
    torch.testing.assert_close(found, weights @ values[0].float().repeat_interleave(2, 1))


class _Still(InterpretedDevice):
    """A device that does nothing, 16 microseconds at a time."""

    def launch(self, kernel: Kernel, grid: Grid, arguments: Sequence[Place | int], pdl: bool) -> None:
        pass

    def multiply(self, product: Product, rows: int, weight: Place, inputs: Place, sums: Place) -> None:
        self.products[product.name] = self.products.get(product.name, 0) + 1

    def measure(self, work: Callable[[], None]) -> float:
        work()
        return 16e-6


def test_linears_of_many_rows_are_shown_beside_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_linears, "ROWS", (64, 70))
    build = llmc.compile(gpu_models.random_llama("tiny"), target="sm_90", prove=False)._build
    source = build.gpu.sources["sm_90"]
    weights = dict(bytes_of_each(build.model.weights))
    device = _Still(source.text, multiplies=True)
    lines = gpu_linears.prompts(GpuProgram(source.plan, device, weights), device)  # type: ignore[arg-type]
    (down,) = (line for line in lines if "64x96:bf16" in line and " 70 rows" in line)
    gemm, own, _, own_rate, _, library, product, _, rate, _ = down.split("rows")[1].split()
    assert (gemm, library, own, own_rate) == ("gemm", "library", product, rate), "the clock is the same for both"
    assert float(rate) == pytest.approx(2 * 64 * 96 * 70 / (float(own) * 1e-6) / 1e12, rel=0.1) and float(rate) > 0
    few = [line for line in lines if " 64 rows" in line]
    assert all("gemm" in line for line in lines) and all("flat" in line for line in few) and len(few) == len(lines) / 2
    assert device.products["product_64x128_bf16"] > 0, "columns are filled up"
