"""Crossovers of GPU programs: every table chooses among the same kernels, and whatever it chooses computes the same."""

from typing import Any

import pytest
import torch
from support.interpreted_device import InterpretedDevice
from zoo.test_gpu import TOLERANCE, VOCAB, error

import llmc
from llmc.codegen.reference import cache_specs
from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.emit import emit
from llmc.ir.weights import bytes_of_each
from llmc.runtime.crossover import NEVER, Crossover
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.cuda.selection import select
from llmc.zoo import tiny
from llmc.zoo.checks import sequences
from llmc.zoo.oracle import logits_of
from llmc.zoo.steps import run_in_pieces

TABLES = {
    "tiles for few rows": Crossover(1, 20, "test"),
    "blocks as soon as may be": Crossover(1, 2, "test"),
    "lanes as long as may be": Crossover(NEVER, NEVER, "test"),
}
"""None of which uses a library."""


@pytest.fixture(scope="module")
def llama() -> tuple[torch.nn.Module, Any]:
    """The module and what is built of it."""
    module = tiny("llama")
    return module, llmc.compile(module, target="sm_90", prove=False)._build


def program(build: Any, crossover: Crossover | None) -> GpuProgram:
    source = build.gpu.sources["sm_90"]
    weights = dict(bytes_of_each(build.model.weights))
    table = None if crossover is None else dict.fromkeys(source.plan.crossovers, crossover)
    return GpuProgram(source.plan, InterpretedDevice(source.text), weights, table)


def launched(made: GpuProgram) -> set[str]:
    assert isinstance(made.device, InterpretedDevice)
    return {name for name in made.device.launches if name.startswith("linear")}


def test_every_table_has_the_same_kernels_and_any_can_be_chosen_when_a_plan_is_loaded(
    llama: tuple[torch.nn.Module, Any],
) -> None:
    _, build = llama
    own = build.gpu.sources["sm_90"]
    for crossover in TABLES.values():
        default = Crossovers(default=crossover)
        other = emit(build.model, cache_specs(build.model), Target.preset("sm_90"), default)
        assert other.text == own.text and other.memory == own.memory
        assert select(own.plan, dict.fromkeys(own.plan.crossovers, crossover)) == other.plan
        assert crossover is TABLES["lanes as long as may be"] or other.plan.launches != own.plan.launches


def test_whatever_is_chosen_computes_what_eager_computes(llama: tuple[torch.nn.Module, Any]) -> None:
    module, build = llama
    prompt = sequences(VOCAB)[0]
    expected = logits_of(module, prompt)
    used = {}
    for name, crossover in TABLES.items():
        made = program(build, crossover)
        assert error(run_in_pieces(made, prompt, [9, 1, 2, 1]), expected) < TOLERANCE, name
        used[name] = launched(made)
    assert len({frozenset(names) for names in used.values()}) == len(TABLES), used


def test_whatever_is_chosen_computes_the_same_with_quantized_weights() -> None:
    """Up to what rounding to bfloat16 before or after a norm's scale makes of it."""
    build = llmc.compile(tiny("llama"), target="sm_90", quantize="int4", prove=False)._build
    prompt = sequences(VOCAB)[0]
    own, other = (
        run_in_pieces(program(build, crossover), prompt, [9, 1, 2])
        for crossover in (None, TABLES["blocks as soon as may be"])
    )
    assert 0 < error(other, own) < 2e-2
