"""Kernels of Linear regions."""

from llmc.codegen.regions import Linear
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft


def emit_linear(region: Linear, context: Context) -> list[Draft]:
    """The launches of one region."""
    raise NotImplementedError(region.name)
