"""Graphs as programs to read and to run."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from support.check_pass import trace
from torch import Tensor, nn

from llmc.ir.show import show, type_text

GOLDEN = """\
from math import inf, nan

import torch

aten, llmc = torch.ops.aten, torch.ops.llmc


def forward(
    up_weight: "f32[4, 8]",                                               # up.weight
    tokens: "f32[T, 8]",
    mask: "bool[T, 4]",
):
    sym_size = mask.shape[0]                                              # T
    linear = aten.linear(tokens, up_weight)                               # f32[T, 4]  up
    masked_fill = aten.masked_fill(linear, mask, value=-inf)              # f32[T, 4]
    mul = sym_size * 2                                                    # 2*T
    view = aten.view(masked_fill, [mul, 2])                               # f32[2*T, 2]
    mean = aten.mean(view, [0], keepdim=True)                             # f32[1, 2]
    to_copy = aten._to_copy(mean, dtype=torch.bfloat16)                   # bf16[1, 2]
    split_with_sizes = aten.split_with_sizes(to_copy, [1, 1], dim=-1)     # (bf16[1, 1], bf16[1, 1])
    getitem = split_with_sizes[0]                                         # bf16[1, 1]
    getitem_1 = split_with_sizes[1]                                       # bf16[1, 1]
    return (getitem, getitem_1)
"""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 4, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        y = torch.masked_fill(self.up(tokens), mask, float("-inf")).reshape(tokens.shape[0] * 2, 2)
        return tuple(y.mean([0], keepdim=True).to(torch.bfloat16).split_with_sizes([1, 1], -1))


def _shown() -> str:
    examples = torch.ones(3, 8), torch.zeros(3, 4, dtype=torch.bool)
    return show(trace(Small(), *examples, dynamic={0: [0], 1: [0]}))


def test_a_graph_prints_as_a_program_with_types_letters_and_origins() -> None:
    assert _shown() == GOLDEN


def test_the_printed_program_runs() -> None:
    examples = torch.randn(3, 8), torch.rand(3, 4) < 0.2
    model = trace(Small(), *examples, dynamic={0: [0], 1: [0]})
    scope: dict[str, object] = {}
    exec(show(model), scope)
    weights = [model.weights[node.name].evaluate() for node in model.placeholders() if node.name in model.weights]
    forward = scope["forward"]
    assert callable(forward)
    for have, want in zip(forward(*weights, *examples), model.run(*examples), strict=True):
        assert torch.equal(have, want)


def test_the_text_does_not_depend_on_the_hash_seed() -> None:
    code = "import sys; sys.path[:0] = ['tests', 'tests/ir']; import test_show; print(test_show._shown())"
    root = Path(__file__).parents[2]
    texts = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert texts == {GOLDEN + "\n"}


def test_types_of_several_values_and_of_numbers_are_text() -> None:
    assert type_text((torch.ones(2, 3), torch.ones(2, dtype=torch.int64))) == "(f32[2, 3], i64[2])"
    assert type_text(7) == "7"
    assert type_text(torch.ones(())) == "f32[]"
