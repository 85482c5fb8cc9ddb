"""What all tests share. Those that are not about native code build without it: compiling takes seconds a program."""

import os


def pytest_configure() -> None:
    os.environ.setdefault("LLMC_PROGRAM", "reference")
