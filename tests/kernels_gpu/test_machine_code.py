"""Kernels of rows, experts and sampling as machine code: no spills, and nothing is read before a wait."""

from pathlib import Path

import pytest
import torch
from support.rearranged_weights import part_names
from support.row_regions import Rows

from llmc.codegen.layout import Buffer, View, fresh
from llmc.codegen.regions import Experts
from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.compile import compile_kernels
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_experts import emit_experts
from llmc.codegen.triton.emit_sampling import emit_sampling
from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.codegen.triton.static_checks import Traits, examine


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


def mixture(format: str) -> Experts:
    """64 experts of [2048, 2048] and [2048, 1024], 8 a token."""
    sizes = ((2048, "f32"), (8, "i64"), (8, "f32"), (2048, "f32"))
    source, ids, gates, output = (
        fresh(Buffer(key, f"b{key}", "T", width, dtype, "arena"), (None, width))
        for key, (width, dtype) in enumerate(sizes)
    )
    attrs = {
        "up_format": format, "down_format": format, "experts": 64, "width": 1024, "act": "silu", "gated": True,
        "limit": 0.0, "up_offset": 0.0,
    }  # fmt: skip
    up, down = (part_names(role, format) for role in ("up", "down"))
    return Experts("moe", "", "T", source, ids, gates, up, down, None, None, output, attrs, ())


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sm_80", "sm_90", "sm_100"])
def test_nothing_spills_and_dependent_launches_wait(level: str, tmp_path: Path) -> None:
    context = Context(Target.preset(level), Crossovers(), (), 128, 128256)
    drafts = [*rows_of_a_model(level), *emit_sampling(context)]
    for format in ("bf16", "int4"):
        drafts += emit_experts(mixture(format), context)
    kernels: dict[str, KernelText] = {f"{draft.kernel.kind}_{i}": draft.kernel for i, draft in enumerate(drafts)}
    for name, binary in compile_kernels(kernels, level, cache=tmp_path).items():
        text = kernels[name]
        traits = Traits(matrix_units=text.matrix_units, most_barriers=100, pdl=text.pdl)
        found = examine(binary, traits, level)
        assert found.findings == (), f"{name} ({text.comment}): {found.findings}"
        assert found.machine.stack == 0, f"{name} spills"
