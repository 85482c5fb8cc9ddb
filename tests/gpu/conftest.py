"""Tests on a GPU. Without one, each is skipped and says why."""

import pytest
from support.gpu import find_gpu

from llmc.runtime.cuda.driver import Driver, Gpu


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/gpu/" in str(item.path):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def driver() -> Driver:
    return find_gpu()[0]


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Gpu:
    return find_gpu()[1]
