"""Rows of a packed table."""

from llmc.codegen.regions import RowOp
from llmc.codegen.triton.emit_weights import load_weight
from llmc.codegen.triton.row_values import Elements


def emit_gather_packed(elements: Elements, op: RowOp) -> None:
    """The row of each token, as fp32."""
    weights, format, n, k = (op.attrs[name] for name in ("weights", "format", "n", "k"))
    assert isinstance(weights, tuple) and isinstance(n, int) and isinstance(k, int), "a table has parts and sizes"
    token = elements.operand(op, 0)
    kernel, run = elements.kernel, elements.runs[0]
    axes = frozenset({run.axis})
    lines = len(kernel.lines)
    text = load_weight(kernel, weights, str(format), n, k, token.name, run.name, elements.mask(axes))
    kernel.lines[lines:] = [elements.pad + line for line in kernel.lines[lines:]]
    elements.keep(op, elements.assign(text, "f32", axes))
