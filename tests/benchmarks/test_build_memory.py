"""A build holds one weight at a time, not the model."""

import sys
from pathlib import Path

import pytest
from benchmarks.build_memory import SHAPES, measure


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory of a process from /proc")
def test_a_build_takes_much_less_memory_than_its_weights(tmp_path: Path) -> None:
    found = measure(SHAPES["small"], tmp_path)
    assert found.weights > 400 << 20
    assert found.peak - found.baseline < 0.8 * found.weights
