"""Kernels of rows, experts and sampling as machine code: no spills, and nothing is read before a wait."""

from pathlib import Path

import pytest
import torch
from support.mixtures import mixture
from support.row_regions import Rows

from llmc.codegen.layout import Buffer, View, fresh
from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.compile import compile_kernels
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_experts import emit_experts
from llmc.codegen.triton.emit_sampling import emit_sampling
from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.codegen.triton.static_checks import Traits, examine, traits_of


def rows_of_a_model(level: str) -> list[Draft]:
    """The tables of an embedding, a norm with its residual, and the router of a mixture."""
    embedding, norm, router = (Rows(pdl=level != "sm_80") for _ in range(3))
    tokens, positions = (embedding.step(name, torch.zeros(3, dtype=torch.int64)) for name in ("tokens", "positions"))
    table = View(Buffer(90, "table", "", 512 * 4096, "bf16", "weight"), fresh_axes(512, 4096))
    rotation = View(Buffer(91, "rotation", "", 64, "f32", "weight"), fresh_axes(64))
    embedding.op("gather_rows", [table, tokens], embedding.new([None, 4096]))
    position, angle = embedding.new([None]), embedding.new([None, 64])
    embedding.op("copy", [positions], position)
    embedding.op("mul", [View(position.buffer, (*position.axes, *fresh_axes(1))), rotation], angle)
    embedding.op("cos", [angle], embedding.new([None, 64]))
    embedding.op("sin", [angle], embedding.new([None, 64]))

    x, residual, normed = norm.tensor([4096]), norm.tensor([4096]), norm.new([None, 4096])
    norm.op("rms_norm", [x, None, None], normed, eps=1e-5, offset=0.0)
    norm.op("add", [residual, normed], norm.new([None, 4096]))

    scores, share = router.tensor([128]), router.new([None, 128])
    values, experts = router.new([None, 8]), router.new([None, 8], "i64")
    router.op("softmax", [scores], share, size=128)
    router.op("topk", [share], [values, experts], k=8)
    return [embedding.draft(), norm.draft(), router.draft()]


def fresh_axes(*shape: int) -> tuple:
    return fresh(Buffer(0, "", "", torch.Size(shape).numel(), "f32", "arena"), shape).axes


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sm_80", "sm_90", "sm_100"])
def test_nothing_spills_and_dependent_launches_wait(level: str, tmp_path: Path) -> None:
    context = Context(Target.preset(level), Crossovers(), (), 128, 128256)
    drafts = [*rows_of_a_model(level), *emit_sampling(context)]
    kernels: dict[str, KernelText] = {f"{draft.kernel.kind}_{i}": draft.kernel for i, draft in enumerate(drafts)}
    for name, binary in compile_kernels(kernels, level, cache=tmp_path).items():
        text = kernels[name]
        traits = Traits(matrix_units=text.matrix_units, most_barriers=100, pdl=text.pdl)
        found = examine(binary, traits, level)
        assert found.findings == (), f"{name} ({text.comment}): {found.findings}"


MIXTURES = {"Mixtral": (8, 4096, 14336, 2), "Qwen 3": (128, 2048, 768, 8)}


def experts_of(model: str, format: str, level: str, tokens: int) -> dict[str, Draft]:
    target = Target.preset(level)
    drafts = emit_experts(mixture(format, *MIXTURES[model]), Context(target, Crossovers(), (), 128, 128256))
    return {f"k{i}": draft for i, draft in enumerate(drafts) if draft.when.holds({"T": tokens, "R": 1, "B": 1})}


def check_experts(model: str, format: str, level: str, tokens: int, cache: Path) -> None:
    drafts = experts_of(model, format, level, tokens)
    binaries = compile_kernels({name: draft.kernel for name, draft in drafts.items()}, level, cache=cache)
    for name, draft in drafts.items():
        found = examine(binaries[name], traits_of(draft, Target.preset(level), tokens), level).findings
        assert found == (), f"{draft.kernel.comment}: {found}"


def test_experts_of_one_token(tmp_path: Path) -> None:
    check_experts("Qwen 3", "int4", "sm_90", 1, tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("tokens", [1, 8, 512])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("model", MIXTURES)
@pytest.mark.parametrize("level", ["sm_80", "sm_90", "sm_100"])
def test_experts(level: str, model: str, format: str, tokens: int, tmp_path: Path) -> None:
    check_experts(model, format, level, tokens, tmp_path)
