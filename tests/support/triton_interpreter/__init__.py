"""Run Triton kernels without a GPU: exact number formats, checked memory, races found, any order of programs.

Importing it skips a test module where triton is not installed.
"""

import pytest

pytest.importorskip("triton", reason="triton, which interprets kernels, is not installed")

from support.triton_interpreter.launching import Launch, install, launch, load_kernels
from support.triton_interpreter.ptx import register_asm
from support.triton_interpreter.ptx_text import PtxError
from support.triton_interpreter.races import RaceError

__all__ = ["Launch", "PtxError", "RaceError", "install", "launch", "load_kernels", "register_asm"]
