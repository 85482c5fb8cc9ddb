"""The operations of a region in passes: runs over the same elements, in which values stay in registers.

Between two passes values go through memory. What one pass writes another reads only after a barrier, because other
threads of the program may have written it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import prod

from llmc.codegen.layout import Axis, View
from llmc.codegen.regions import RowOp

WHOLE = frozenset({
    "softmax", "log_softmax", "cumsum", "rms_norm", "layer_norm", "sum", "mean", "amax", "amin", "topk", "write_k",
    "write_v",
})  # fmt: skip
"""Operations on whole rows of the last axis of their first operand."""
REDUCED = frozenset({"sum", "mean", "amax", "amin"})
"""Those that leave one element of the last axis."""
_OF_INDEX = frozenset({"scatter_into"})
_ELSEWHERE = {
    "rope": (0, 1, 2), "gather_rows": (0,), "gather_table": (0,), "gather_last": (0,), "select_columns": (0, 1),
}  # fmt: skip
"""Operands that are read at other elements than those that are computed."""

Key = tuple[int, int, bool, tuple[int, ...]]
"""Which elements of which buffer a value has, over the elements of a pass."""


@dataclass
class Pass:
    """Operations over the same elements: `shape` are the sizes of the axes, without those of size 1."""

    shape: tuple[int, ...] = ()
    whole: bool = False
    """Whether programs work on whole rows of the last axis."""
    ops: list[RowOp] = field(default_factory=list)
    written: dict[int, set[Key]] = field(default_factory=dict)
    """Of each buffer that is written, which elements."""

    @property
    def elements(self) -> int:
        """How many."""
        return prod(self.shape)


def passes_of(ops: Iterable[RowOp]) -> list[Pass]:
    """The passes that compute the operations in order."""
    passes: list[Pass] = []
    for op in chain.from_iterable(map(_simplified, ops)):
        if not passes or not _joins(passes[-1], op):
            passes.append(Pass())
        _join(passes[-1], op)
    return passes


def barriers(passes: Sequence[Pass]) -> list[bool]:
    """For each pass, whether it must wait until what was written before can be read."""
    found, fresh = [], set[int]()
    for one in passes:
        touched = {value.buffer.key for op in one.ops for value in op.inputs if isinstance(value, View)}
        touched |= {op.outputs[0].buffer.key for op in one.ops if op.op in _OF_INDEX}
        waits = not touched.isdisjoint(fresh)
        fresh = set(one.written) if waits else fresh | set(one.written)
        found.append(waits)
    return found


def axes_of(op: RowOp) -> tuple[Axis, ...]:
    """The axes whose elements an operation goes through."""
    first = op.inputs[0] if op.op in WHOLE or op.op in _OF_INDEX else op.outputs[0]
    assert isinstance(first, View), f"{op.op} works on a tensor"
    return first.axes


def kept(op: RowOp) -> tuple[int, ...]:
    """The places of those axes that are more than one element, or the rows of an operation on whole rows."""
    axes = axes_of(op)
    last = len(axes) - 1 if op.op in WHOLE else -1
    return tuple(place for place, axis in enumerate(axes) if axis.size not in (None, 1) or place == last)


def along(view: View, op: RowOp) -> tuple[int, ...]:
    """The strides of an operand, broadcast from the right, along the axes that are kept."""
    axes = axes_of(op)
    shift = len(axes) - len(view.axes)
    found = (view.axes[place - shift] if place >= shift else Axis(1, 0) for place in kept(op))
    return tuple(0 if axis.size in (None, 1) else axis.stride for axis in found)


def operand_strides(op: RowOp, place: int) -> tuple[int, ...] | None:
    """The strides of an operand that is read where it is needed; None for one that is read elsewhere or is a number."""
    view = op.inputs[place]
    if not isinstance(view, View) or place in _ELSEWHERE.get(op.op, ()):
        return None
    if op.op in ("gather_rows", "gather_packed"):  # the index has the first axes
        padded = view.axes + (Axis(1, 0),) * (len(axes_of(op)) - len(view.axes))
        return along(replace(view, axes=padded), op)
    return along(view, op)


def result_strides(op: RowOp) -> tuple[int, ...]:
    """The strides of the first result along the axes that are kept."""
    output = op.outputs[0]
    if op.op in REDUCED or op.op == "topk":
        outer = output.axes[: len(axes_of(op)) - 1]
        return along(replace(output, axes=(*outer, Axis(1, 0))), op)
    return along(output, op)


def key_of(view: View, strides: tuple[int, ...]) -> Key:
    """The elements of a view over the elements of a pass."""
    return view.buffer.key, view.offset, view.indirect, strides if any(strides) else ()


def shape_of(op: RowOp) -> tuple[int, ...]:
    """The sizes of the axes that are kept."""
    axes = axes_of(op)
    return tuple(axes[place].size or 1 for place in kept(op))


def _joins(one: Pass, op: RowOp) -> bool:
    shape = shape_of(op)
    if op.op in _OF_INDEX or any(other.op in _OF_INDEX for other in one.ops):
        return False
    if shape and one.shape and shape != one.shape:
        return False
    if not shape and any(_feeds(other, op) for other in one.ops if shape_of(other)):
        return False  # single numbers of a pass are computed before its elements
    for place, value in enumerate(op.inputs):
        if isinstance(value, View) and value.buffer.key in one.written:
            strides = operand_strides(op, place)
            if strides is None or key_of(value, strides) not in one.written[value.buffer.key]:
                return False
    return True


def _feeds(earlier: RowOp, op: RowOp) -> bool:
    read = {value.buffer.key for value in op.inputs if isinstance(value, View)}
    return any(output.buffer.key in read for output in earlier.outputs)


def _join(one: Pass, op: RowOp) -> None:
    one.ops.append(op)
    one.shape = one.shape or shape_of(op)
    one.whole = one.whole or op.op in WHOLE
    if op.op in ("write_k", "write_v"):
        return
    for output in op.outputs[: 2 if op.op == "topk" else 1]:
        # Only what stays in registers has a key; topk leaves nothing there.
        keys = set() if op.op == "topk" else {key_of(output, result_strides(op))}
        one.written.setdefault(output.buffer.key, set()).update(keys)


def _simplified(op: RowOp) -> list[RowOp]:
    """An operation by others that are simpler: copies between views instead of moves of elements."""
    source, output = op.inputs[0], op.outputs[0]
    if op.op == "copy_flat":
        assert isinstance(source, View) and output.is_contiguous, "a reshape makes a new value"
        return [replace(op, op="copy", outputs=(replace(output, axes=_contiguous(source.axes)),))]
    if op.op == "repeat_last":
        assert isinstance(source, View) and isinstance(op.attrs["repeats"], int), "it repeats a tensor"
        repeats, last, wide = op.attrs["repeats"], source.axes[-1], output.axes[-1]
        inner = (Axis(last.size, wide.stride * repeats), Axis(repeats, wide.stride))
        read = replace(source, axes=(*source.axes, Axis(repeats, 0)))
        return [replace(op, op="copy", inputs=(read,), outputs=(replace(output, axes=(*output.axes[:-1], *inner)),))]
    if op.op == "scatter_last":
        return [
            replace(op, op="copy", inputs=(source,)),
            replace(op, op="scatter_into", inputs=op.inputs[1:]),
        ]
    return [op]


def _contiguous(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    stride, made = 1, list[Axis]()
    for axis in reversed(axes):
        made.insert(0, axis if axis.size is None else Axis(axis.size, stride))
        stride *= axis.size or 1
    return tuple(made)
