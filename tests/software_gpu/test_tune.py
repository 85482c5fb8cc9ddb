"""Tuning of programs whose kernels run as they are compiled: any order of launches is as safe as that of a step."""

import pytest
from support.gpu_tuning import tunes_and_computes_the_same
from support.gpu_zoo import OnGpu


@pytest.mark.parametrize("target", ["sm_90"], indirect=True)
@pytest.mark.parametrize(("family", "storage"), [("llama", "float"), ("mixtral", "float")])
def test_a_tuned_program_computes_the_same(on_gpu: OnGpu, family: str, storage: str) -> None:
    tunes_and_computes_the_same(on_gpu, family, storage, rows=(1, 2, 20), repetitions=1, rotated=1)
