"""Tests on a GPU in software, of two kinds: what PTX of an artifact is for, and one with programmatic launches."""

import pytest
from support import software_driver
from support.gpu_zoo import OnGpu

from llmc.runtime.cuda.driver import Driver, Gpu


@pytest.fixture(params=["sm_80", "sm_90"])
def target(request: pytest.FixtureRequest) -> str:
    """What programs are compiled for: sm_80 is run as a newer GPU would run its PTX."""
    return str(request.param)


@pytest.fixture
def driver(target: str) -> Driver:
    return software_driver.driver(software_driver.CAPABILITIES[target])


@pytest.fixture
def gpu(driver: Driver) -> Gpu:
    return driver.gpus()[0]


@pytest.fixture
def on_gpu(target: str) -> OnGpu:
    return software_driver.on_software_gpu(target)
