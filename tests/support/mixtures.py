"""Mixtures of experts made by hand, without weights: to be compiled and not to be run, they may be large."""

from support.rearranged_weights import part_names

from llmc.codegen.layout import Buffer, fresh
from llmc.codegen.regions import Experts


def mixture(format: str, experts: int, size: int, width: int, chosen: int) -> Experts:
    """Gated experts of [2 width, size] and [size, width], some of them for each token."""
    sizes = ((size, "f32"), (chosen, "i64"), (chosen, "f32"), (size, "f32"))
    source, ids, gates, output = (
        fresh(Buffer(key, f"b{key}", "T", columns, dtype, "arena"), (None, columns))
        for key, (columns, dtype) in enumerate(sizes)
    )
    attrs = {
        "up_format": format, "down_format": format, "experts": experts, "width": width, "act": "silu", "gated": True,
        "limit": 0.0, "up_offset": 0.0,
    }  # fmt: skip
    up, down = (part_names(role, format) for role in ("up", "down"))
    return Experts("moe", "", "T", source, ids, gates, up, down, None, None, output, attrs, ())
