"""Models of many families in their published shapes: launches of a layer, and the machine code of a step."""

from pathlib import Path

import pytest
from benchmarks.gpu_families import source_of
from support.model_code import compiled, examined, launches_of_layer
from support.popular_models import POPULAR

LAYER = {"falcon-7b": 5, "opt-125m": 5, "mpt-7b": 5}
"""Launches of a layer while one token is decoded, of models unlike Llamas: one key head cut out of the projection,
factors of queries, ALiBi with slopes that are rounded."""

SLOW_ANGLES = "registers are spilled: 32 bytes of stack, 10 accesses"
"""No registers that there is no room for, but an array of CUDA's cos and sin, for angles above 105,615."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYER)
def test_a_layer_takes_few_launches(name: str) -> None:
    assert launches_of_layer(source_of(name, "sm_90", "float"), 1, 1) == LAYER[name]


@pytest.mark.sweep
@pytest.mark.parametrize("tokens", [1, 8, 32, 512])
@pytest.mark.parametrize("format", ["float", "int4"])
@pytest.mark.parametrize("name", POPULAR)
def test_rows_and_experts_are_as_they_should_be(name: str, format: str, tokens: int, tmp_path: Path) -> None:
    source = source_of(name, "sm_90", format)
    binaries = compiled(source, "sm_90", tokens, tmp_path)
    for kernel, seen in examined(source, binaries, "sm_90", tokens):
        if not kernel.startswith(("linear", "attention")):
            findings = set(seen.findings) - {SLOW_ANGLES}
            assert not findings, f"{kernel} ({source.kernels[kernel].comment}): {findings}"
