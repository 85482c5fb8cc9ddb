"""Kernels of RowRegion regions."""

from llmc.codegen.regions import RowRegion
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft


def emit_rows(region: RowRegion, context: Context) -> list[Draft]:
    """The launches of one region."""
    raise NotImplementedError(region.name)
