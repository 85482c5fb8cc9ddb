"""Kernels that lay packed weights out in rows, once, before the first step."""

from llmc.codegen.triton.kernel import Draft
from llmc.codegen.triton.packed import PackedWeight


def emit_rearrangement(weight: PackedWeight) -> list[tuple[str, int, Draft]]:
    """For each part of a weight that is not read as it is stored: its name, the bytes of the result and the launch."""
    raise NotImplementedError(weight.format)
