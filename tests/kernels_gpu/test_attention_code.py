"""The machine code of attention for the shapes of real models: static checks find nothing to say against it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernels_gpu.test_linear_code import findings
from support.attention_regions import Case, attention_drafts

from llmc.codegen.triton.compile import compile_kernels
from llmc.codegen.triton.static_checks import NEEDED_IN_FLIGHT, Traits, examine

LLAMA_1B = Case(heads=32, key_heads=8, key_size=64, value_size=64)
LLAMA_8B = Case(heads=32, key_heads=8, key_size=128, value_size=128)
GEMMA = Case(heads=16, key_heads=8, key_size=256, value_size=256)
SHAPES = {
    "1B": LLAMA_1B,
    "8B": LLAMA_8B,
    "8B, int8": replace(LLAMA_8B, dtype=torch.int8),
    "8B, fp8": replace(LLAMA_8B, dtype=torch.float8_e4m3fn),
    "keys wider than values": Case(heads=16, key_heads=16, key_size=192, value_size=128),
    "96": Case(heads=32, key_heads=32, key_size=96, value_size=96, mask="(k <= q) & (q - k < 2047)"),
    "80": Case(heads=32, key_heads=32, key_size=80, value_size=80),
    "8B, fp16": replace(LLAMA_8B, dtype=torch.float16),
    "8B, fp32": replace(LLAMA_8B, dtype=torch.float32),
    "window": replace(LLAMA_8B, mask="(k <= q) & (q - k < 4096)"),
    "chunks": replace(LLAMA_8B, mask="(k <= q) & (k // 8192 == q // 8192)"),
    "first keys and a window": replace(LLAMA_8B, mask="(k <= q) & ((k < 4) | (q - k < 1024))"),
    "lists": replace(LLAMA_8B, mask="(k <= q) & ((q // 64 - k // 64) % 8 == 0)", listed=True),
    "256": GEMMA,
    "256, bounded": replace(GEMMA, mask="(k <= q) & (q - k < 4096)", softcap=50.0, bounded=True),
    "256, int8": replace(GEMMA, dtype=torch.int8),
    "256, fp32": replace(GEMMA, dtype=torch.float32),
    "slopes": replace(LLAMA_1B, bias="t0[h] * (k - q)", tables=(torch.ones(32),)),
}


def test_a_decode_step_reads_widely_and_ahead(tmp_path: Path) -> None:
    drafts = {d.kernel.kind: d for d in attention_drafts(LLAMA_1B) if d.kernel.kind == "attention_decode"}
    assert findings(drafts, "sm_90", tmp_path) == {}
    text = drafts["attention_decode"].kernel
    binary = compile_kernels({"decode": text}, "sm_90", cache=tmp_path)["decode"]
    seen = examine(binary, Traits(matrix_units=True, pdl=True), "sm_90")
    (loop,) = (loop for loop in seen.machine.loops if loop.counts["HMMA"])
    copies = [item.width for item in loop.body if item.name == "LDGSTS"]
    assert copies == [16] * (64 * (64 + 64) * 2 // (128 * 16))  # all keys and values, and no load but the next block's
    assert loop.counts["LDG"] == 1
    block = 64 * (64 + 64) * 2
    assert (text.stages - 2) * block * seen.blocks_per_sm >= NEEDED_IN_FLIGHT["sm_90"]
    assert len(loop.body) * text.warps / 64 < 15  # instructions a key: there is time for 60 while it is read


@pytest.mark.parametrize(
    ("shape", "level"),
    [
        ("1B", "sm_90"),
        ("8B", "sm_100"),
        ("8B, fp8", "sm_89"),
        ("8B, int8", "sm_80"),
        ("256", "sm_90"),
        ("96", "sm_100"),
        ("256, bounded", "sm_100"),
        ("slopes", "sm_90"),
        ("256, fp32", "sm_80"),
        ("lists", "sm_90"),
    ],
)
def test_shapes_of_models(shape: str, level: str, tmp_path: Path) -> None:
    drafts = {d.kernel.kind: d for d in attention_drafts(replace(SHAPES[shape], target=level))}
    assert findings(drafts, level, tmp_path) == {}


@pytest.mark.sweep
@pytest.mark.parametrize("level", ["sm_80", "sm_89", "sm_90", "sm_100"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shapes_of_models(shape: str, level: str, tmp_path: Path) -> None:
    drafts = {d.kernel.kind: d for d in attention_drafts(replace(SHAPES[shape], target=level))}
    assert findings(drafts, level, tmp_path) == {}
