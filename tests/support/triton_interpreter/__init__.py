"""Run Triton kernels without a GPU: exact number formats, checked memory, races found, any order of programs.

Importing it skips a test module where triton is not installed.
"""

import pytest

pytest.importorskip("triton", reason="triton, which interprets kernels, is not installed")

from support.triton_interpreter.launching import Launch, install, launch, load_kernels  # noqa: E402
from support.triton_interpreter.races import RaceError  # noqa: E402

__all__ = ["Launch", "RaceError", "install", "launch", "load_kernels"]
