"""Models of which torch computes a part: eager's logits, the same bits in any batch, saved and loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.odd_models import V, decoder
from torch import nn
from zoo.test_native import VOCAB, assert_same_bits

import llmc
from llmc.errors import ArtifactRejected, UnsupportedModel
from llmc.runtime.artifact import Artifact
from llmc.zoo import tiny
from llmc.zoo.checks import check, require, sequences
from llmc.zoo.steps import Driver, run_in_pieces


class Odd(nn.Module):
    """An MLP of a Llama, and after it what has no native form: pointwise, a reduction, an order, a matrix product."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mlp(x)
        groups = x.unflatten(-1, (8, -1))
        x = x + torch.matmul(groups, groups.transpose(-1, -2)).flatten(-2)
        return torch.erfc(x) * x.std(-1, keepdim=True) + torch.sort(x, -1).values


def odd_llama(layers: tuple[int, ...], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tiny Llama with `Odd` in some of its two layers."""
    module = tiny("llama")
    for layer in layers:
        module.model.layers[layer].mlp = Odd(module.model.layers[layer].mlp)  # type: ignore[union-attr,index]
    return module.to(dtype)


def test_a_decoder_with_odd_layers_matches_eager_in_any_batch() -> None:
    module = odd_llama((0, 1))
    compiled = llmc.compile(module, program="cpu", prove=False)
    program = compiled.report["program"]
    assert program["kind"] == "cpu" and 0.8 < program["native"] < 1
    assert sum(item["count"] for item in program["torch"]) == 4 * 2
    require(check(compiled.session.program, module, VOCAB), "odd layers")
    assert_same_bits(compiled.session.program, "odd layers")


def test_in_bfloat16_it_computes_what_the_reference_computes() -> None:
    module = odd_llama((1,), torch.bfloat16)
    native = llmc.compile(module, program="cpu", prove=False).session.program
    reference = llmc.compile(module, program="reference", prove=False).session.program
    prompt = sequences(VOCAB)[0]
    have, expected = run_in_pieces(native, prompt, []), run_in_pieces(reference, prompt, [])
    error = (have - expected).square().mean().sqrt() / expected.std()
    assert error < 0.05, f"{error:.4f}"  # the reference rounds each result to bfloat16, native code only what it stores
    assert_same_bits(native, "an odd layer in bfloat16")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose layers end in a cumulative product, saved."""
    compiled = llmc.compile(decoder(lambda x: torch.cumprod(torch.tanh(x), -1)), program="cpu", prove=False)
    return compiled.save(tmp_path_factory.mktemp("odd") / "odd.llmc")


def test_a_saved_one_runs_in_a_process_of_its_own(artifact: Path) -> None:
    module = decoder(lambda x: torch.cumprod(torch.tanh(x), -1))
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    code = f"""
import json, llmc, sys
model = llmc.load({str(artifact)!r})
print(json.dumps([type(model.session.program).__name__, model.session.logits({tokens}).tolist()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kind, logits = json.loads(done.stdout)
    assert kind == "CpuProgram"
    torch.testing.assert_close(torch.tensor(logits), module(torch.tensor([tokens]))[0], rtol=1e-5, atol=1e-5)


def test_explain_and_inspect_say_what_torch_computes_and_why(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmc.cli.look import explain, inspect

    explain(artifact)
    text = capsys.readouterr().out
    assert "torch_0: torch computes cumprod in 2 regions: aten.cumprod.default has no native form" in text
    explain(artifact, "cumprod")
    assert "not native: aten.cumprod.default has no native form" in capsys.readouterr().out
    inspect(artifact)
    text = capsys.readouterr().out
    assert "native code for 8" in text and "aten.cumprod: 2 x at layers.* at odd_models.py" in text


def test_regions_that_torch_computes_are_measured_too(artifact: Path) -> None:
    from llmc.codegen.explanation import StepSizes
    from llmc.measure_regions import sample_batch

    program = llmc.load(artifact).session.program
    batch = sample_batch(StepSizes(3, 1, 1, 8), V)
    program.allocate(batch.blocks.size, 256)
    times = program.measure(batch)
    assert len(times) == program.description.regions and all(time > 0 for time in times)


def test_a_file_of_calls_that_the_library_was_not_made_with_is_refused(artifact: Path, tmp_path: Path) -> None:
    """The library reads memory where the file says: it takes only the one whose hash it holds."""
    from llmc.codegen.torch_host import TorchHost
    from llmc.options import cache_directory
    from llmc.runtime.open_program import open_cpu_session

    opened = Artifact.open(artifact, verify="fast")

    def other(content: bytes) -> TorchHost:
        return TorchHost.read(content.replace(b"cumprod", b"cumsum"))

    with pytest.raises(ArtifactRejected, match="was made with calls of torch with SHA-256"):
        open_cpu_session(opened, cache=cache_directory(), host=other)
    with pytest.raises(ArtifactRejected, match="found none"):
        open_cpu_session(opened, cache=cache_directory())


@torch.library.custom_op("odd_parts::halve", mutates_args=(), tags=(torch.Tag.pointwise,))
def halve(x: torch.Tensor) -> torch.Tensor:
    if bool((x > 1e6).any()):
        raise ValueError("too large to halve")
    return x / 2


@halve.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_an_op_that_somebody_registered_runs_here_and_cannot_be_saved(tmp_path: Path) -> None:
    module = decoder(halve)
    compiled = llmc.compile(module, program="cpu", prove=False)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    torch.testing.assert_close(compiled(tokens), module(tokens), rtol=1e-5, atol=1e-5)
    with pytest.raises(UnsupportedModel, match=r"odd_parts.*cannot be stored in an artifact"):
        compiled.save(tmp_path / "odd.llmc")


def test_an_error_in_torch_ends_the_step_and_not_the_program() -> None:
    module = decoder(halve)
    with torch.no_grad():
        module.table.weight[7] = 1e9  # type: ignore[union-attr,operator]
    program = llmc.compile(module, program="cpu", prove=False).session.program
    driver = Driver(program)
    before = driver.step({"good": [1, 2, 3]})["good"]
    with pytest.raises(ValueError, match="too large to halve") as caught:
        driver.step({"bad": [7]})
    assert "a part of the native program that torch computes" in caught.value.__notes__[0]
    assert torch.equal(driver.step({"again": [1, 2, 3]})["again"], before)
