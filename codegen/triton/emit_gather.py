"""Rows of a packed table."""

from llmc.codegen.regions import RowOp
from llmc.codegen.triton.row_values import Elements
from llmc.ir.packed_layout import padded_columns

_TYPES = {"f32": "*fp32", "f16": "*fp16", "bf16": "*bf16"}


def emit_gather_packed(elements: Elements, op: RowOp) -> None:
    """The row of each token, as fp32."""
    weights, format, k = op.attrs["weights"], str(op.attrs["format"]), op.attrs["k"]
    assert isinstance(weights, tuple) and isinstance(k, int), "a table has parts and columns"
    token = elements.operand(op, 0)
    column, axes = elements.runs[0].name, frozenset({elements.runs[0].axis})
    if format not in _TYPES:
        raise NotImplementedError(format)
    data = elements.kernel.weight(weights[0], "table", _TYPES[format])
    mask = elements.mask(axes)
    text = f"tl.load({data} + {token.name} * {padded_columns(k)} + {column}{f', mask={mask}, other=0' if mask else ''})"
    elements.keep(op, elements.assign(f"{text}.to(tl.float32)", "f32", axes))
