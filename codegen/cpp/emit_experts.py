"""Mixtures of experts as C++: one call of the `moe` template."""

from llmc.codegen.cpp.function import Function
from llmc.codegen.regions import Experts


def emit_experts(region: Experts) -> Function:
    """The function of one mixture of experts."""
    raise NotImplementedError(region.name)
