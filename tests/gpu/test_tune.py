"""Tuning on a GPU."""

import pytest
from support.gpu import on_gpu
from support.gpu_tuning import tunes_and_computes_the_same

from llmc.bench.tune_gpu import ROTATED_BYTES, ROWS


@pytest.mark.parametrize(("family", "storage"), [("llama", "float"), ("llama", "int4"), ("mixtral", "int8")])
def test_a_tuned_program_computes_the_same(family: str, storage: str) -> None:
    tunes_and_computes_the_same(on_gpu, family, storage, rows=ROWS[:-2], repetitions=3, rotated=ROTATED_BYTES)
