"""Kernels of Experts regions."""

from llmc.codegen.regions import Experts
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft


def emit_experts(region: Experts, context: Context) -> list[Draft]:
    """The launches of one region."""
    raise NotImplementedError(region.name)
