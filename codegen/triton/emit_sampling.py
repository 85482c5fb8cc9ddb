"""Kernels that choose the next tokens on the device."""

from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft


def emit_sampling(context: Context) -> list[Draft]:
    """The launches after the last region of a step."""
    return []
