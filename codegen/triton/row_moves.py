"""Operations that read elements by an index: gathers, scatters, rotations."""

from llmc.codegen.layout import Axis, View
from llmc.codegen.regions import RowOp
from llmc.codegen.triton.row_passes import along
from llmc.codegen.triton.row_values import Elements, Register


def emit_gather_rows(elements: Elements, op: RowOp) -> None:
    """Whole rows of a table."""
    source, _ = _operands(op)
    outer = len(op.outputs[0].axes) - (len(source.axes) - 1)
    index = elements.operand(op, 1)
    names = elements.indices(op)[outer:]
    _pick(elements, op, source, index, [_wrapped(elements, index, source.axes[0]), *_terms(source.axes[1:], names)])


def emit_gather_table(elements: Elements, op: RowOp) -> None:
    """Of each column of a table the element in a row of its own."""
    source, _ = _operands(op)
    index = elements.operand(op, 1)
    names = elements.indices(op)[1:]
    _pick(elements, op, source, index, [_wrapped(elements, index, source.axes[0]), *_terms(source.axes[1:], names)])


def emit_gather_last(elements: Elements, op: RowOp) -> None:
    """Elements along the last axis."""
    source, _ = _operands(op)
    index = elements.operand(op, 1)
    names = elements.indices(op)
    _pick(elements, op, source, index, [f"{index.name} * {source.axes[-1].stride}", *_terms(source.axes[:-1], names)])


def emit_select_columns(elements: Elements, op: RowOp) -> None:
    """Elements along one axis, the same of each row."""
    source, index = _operands(op)
    axis = op.attrs["axis"]
    assert isinstance(axis, int), "an axis is a number"
    names = elements.indices(op) + ["0"] * len(source.axes)
    terms = [] if names[axis] == "0" else _terms(index.axes, [names[axis]])
    read = elements.load(index, "index", terms, _axes(elements, terms))
    chosen = _wrapped(elements, read, source.axes[axis])
    rest = [place for place in range(len(source.axes)) if place != axis]
    _pick(elements, op, source, read, [chosen, *_terms([source.axes[p] for p in rest], [names[p] for p in rest])])


def emit_scatter_into(elements: Elements, op: RowOp) -> None:
    """Store values along the last axis at indices; where indices are equal, any of their values stays."""
    output = op.outputs[0]
    index, value = elements.operand(op, 0), elements.operand(op, 1)
    names = elements.indices(op)
    terms = [*_terms(output.axes[:-1], names), f"{index.name} * {output.axes[-1].stride}"]
    address = " + ".join([elements.base(output, "target"), *terms])
    mask = elements.mask(index.axes | _axes(elements, terms))
    elements.add(f"tl.store({address}, {value.name}{f', mask={mask}' if mask else ''})")


def emit_rope(elements: Elements, op: RowOp) -> None:
    """x cos + rotate(x) sin on the first elements of the last axis, the rest as it is.

    `rotate` maps the halves (a, b) of the rotated elements to (-b, a), or each neighbouring pair when interleaved.
    """
    source, cos, sin = op.inputs
    assert isinstance(source, View) and isinstance(cos, View) and isinstance(sin, View), "rope has three tensors"
    size, rotated = source.axes[-1].size or 1, cos.axes[-1].size or 1
    last = elements.indices(op)[-1]
    partial = f"({last} < {rotated})" if rotated < size else ""
    outer = along(source, op)[:-1]
    second, partner, half = f"second{elements.suffix}", f"partner{elements.suffix}", rotated // 2
    if op.attrs["interleaved"]:
        elements.add(f"{second} = {last} % 2 == 1", f"{partner} = {last} ^ 1")
    else:
        elements.add(f"{second} = {last} >= {half}")
        elements.add(f"{partner} = tl.where({second}, {last} - {half}, {last} + {half})")

    def read(view: View, role: str, column: str, extra: str) -> Register:
        terms, axes = elements.at((*(outer if view is source else along(view, op)[:-1]), 0))
        stride = view.axes[-1].stride
        terms.append(column if stride == 1 else f"{column} * {stride}")
        return elements.load(view, role, terms, axes | _axes(elements, [last]), extra)

    x = read(source, "source", last, "")
    other = read(source, "source", partner, partial)
    cosine, sine = read(cos, "cos", last, partial), read(sin, "sin", last, partial)
    turned = f"{x.name} * {cosine.name} + tl.where({second}, {other.name}, -{other.name}) * {sine.name}"
    text = f"tl.where({partial}, {turned}, {x.name})" if partial else turned
    elements.keep(op, elements.assign(text, "f32", x.axes))


def _operands(op: RowOp) -> tuple[View, View]:
    source, index = op.inputs
    assert isinstance(source, View) and isinstance(index, View), f"{op.op} has a source and indices"
    return source, index


def _wrapped(elements: Elements, index: Register, axis: Axis) -> str:
    """The offset along an axis of an index that may count from the end."""
    return f"{elements.kernel.call('numbers', 'wrapped')}({index.name}, {axis.size}) * {axis.stride}"


def _pick(elements: Elements, op: RowOp, source: View, index: Register, terms: list[str]) -> None:
    role = "table" if source.buffer.place == "weight" else "source"
    elements.keep(op, elements.load(source, role, terms, index.axes | _axes(elements, terms)))


def _axes(elements: Elements, terms: list[str]) -> frozenset[str]:
    """The axes of the tile that terms of an offset have by the indices in them."""
    words = set(" ".join(terms).replace("(", " ").replace(")", " ").split())
    return frozenset(run.axis for run in elements.runs if run.name in words)


def _terms(axes: tuple[Axis, ...] | list[Axis], names: list[str]) -> list[str]:
    return [
        name if axis.stride == 1 else f"{name} * {axis.stride}"
        for axis, name in zip(axes, names, strict=False)
        if axis.size not in (None, 1) and axis.stride and name != "0"
    ]
