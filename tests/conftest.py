"""What all tests share. Those that are not about native code build without it: compiling takes seconds a program."""

import os
import signal

import pytest

# Before anything else is imported, the configurations of folders below included.
os.environ.setdefault("LLMC_PROGRAM", "reference")
# Triton reads this when it is imported and whenever a kernel is defined: tests interpret kernels. What compiles
# kernels runs in processes of its own, without it.
os.environ["TRITON_INTERPRET"] = "1"
# Where tests are started in the background, Ctrl-C is ignored, by processes that they start as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sweep", action="store_true", help="run every shape, format and target too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--sweep"):
        for item in items:
            if "sweep" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="one of very many; run with --sweep"))
