"""Kernels of Attention regions."""

from llmc.codegen.regions import Attention
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft


def emit_attention(region: Attention, context: Context) -> list[Draft]:
    """The launches of one region."""
    raise NotImplementedError(region.name)
