"""Where values live: buffers of rows, and views of them.

A packed graph's values are `[T, ...]` (a row per token), `[R, ...]` (a row per wanted logit) or of fixed size. A
buffer holds the rows one after another, whatever the position of the row axis in the value's shape; views move axes,
split and slice them without moving data. Offsets and strides are in elements, within one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

Domain = Literal["", "T", "R"]
"""What the rows of a buffer are: nothing (a fixed size), tokens, or wanted rows of logits."""
Place = Literal["arena", "weight", "step", "logits"]


@dataclass(frozen=True)
class Buffer:
    """Memory for one value: `width` elements for each row, or in all if it has no rows."""

    key: int
    name: str
    domain: Domain
    width: int
    dtype: str
    """f32, f16, bf16, i64 or u8 (bool)."""
    place: Place


@dataclass(frozen=True)
class Axis:
    """One axis of a view: the row axis when `size` is None."""

    size: int | None
    stride: int


ROW = Axis(None, 0)


@dataclass(frozen=True)
class View:
    """A value as part of a buffer; `indirect` rows are read through the step's `rows`."""

    buffer: Buffer
    axes: tuple[Axis, ...]
    offset: int = 0
    indirect: bool = False

    @property
    def domain(self) -> Domain:
        """The rows that the value has."""
        return "R" if self.indirect else self.buffer.domain

    @property
    def fixed(self) -> tuple[Axis, ...]:
        """The axes within a row."""
        return tuple(axis for axis in self.axes if axis.size is not None)

    @property
    def elements(self) -> int:
        """Elements in one row."""
        return prod(axis.size or 1 for axis in self.fixed)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements of a row follow one another in the order of the axes."""
        expected = 1
        for axis in reversed(self.fixed):
            if axis.size != 1 and axis.stride != expected:
                return False
            expected *= axis.size or 1
        return True


@dataclass(frozen=True)
class Scalar:
    """A value that is one number everywhere."""

    value: float | int | bool
    dtype: str


Value = View | Scalar


def fresh(buffer: Buffer, shape: Sequence[int | None]) -> View:
    """The view of a whole buffer with the given shape, None at the row axis."""
    axes: list[Axis] = []
    stride = 1
    for size in reversed(shape):
        axes.insert(0, ROW if size is None else Axis(size, stride))
        stride *= 1 if size is None else size
    assert stride == buffer.width, f"{buffer.name}: {stride} elements in a row of {buffer.width}"
    return View(buffer, tuple(axes))


def permute(view: View, order: Sequence[int]) -> View:
    """The axes in another order."""
    return replace(view, axes=tuple(view.axes[place] for place in order))


def narrow(view: View, axis: int, start: int, size: int, step: int = 1) -> View | None:
    """Every `step`-th of the elements from `start` along one axis; None along the row axis."""
    old = view.axes[axis]
    if old.size is None:
        return view if start == 0 and step == 1 and size == -1 else None
    axes = list(view.axes)
    axes[axis] = Axis(size, old.stride * step)
    return replace(view, axes=tuple(axes), offset=view.offset + start * old.stride)


def drop(view: View, axis: int) -> View:
    """Without one axis."""
    return replace(view, axes=view.axes[:axis] + view.axes[axis + 1 :])


def insert(view: View, axis: int) -> View:
    """With one more axis of size 1."""
    return replace(view, axes=(*view.axes[:axis], Axis(1, 0), *view.axes[axis:]))


def expand(view: View, shape: Sequence[int | None]) -> View | None:
    """Axes of size 1 repeated, new ones in front; None where a row axis would have to be made of another."""
    axes = list(view.axes)
    while len(axes) < len(shape):
        axes.insert(0, Axis(1, 0))
    for place, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        if axis.size == size:
            continue
        if axis.size != 1:
            return None
        axes[place] = ROW if size is None else Axis(size, 0)
    if sum(axis.size is None for axis in axes) > 1:
        return None
    return replace(view, axes=tuple(axes))


def reshape(view: View, shape: Sequence[int | None]) -> View | None:
    """The same elements in another shape, if that needs no copy."""
    before, after = _around(view.axes)
    sizes_before, sizes_after = _around_sizes(shape)
    has_row = len(before) + len(after) < len(view.axes)
    if has_row != (None in shape):
        return None
    left, right = _regroup(before, sizes_before), _regroup(after, sizes_after)
    if left is None or right is None:
        return None
    return replace(view, axes=(*left, *((ROW,) if has_row else ()), *right))


def _around(axes: Sequence[Axis]) -> tuple[list[Axis], list[Axis]]:
    place = next((i for i, axis in enumerate(axes) if axis.size is None), None)
    return ([], list(axes)) if place is None else (list(axes[:place]), list(axes[place + 1 :]))


def _around_sizes(shape: Sequence[int | None]) -> tuple[list[int], list[int]]:
    sizes = [-1 if size is None else size for size in shape]
    return ([], sizes) if -1 not in sizes else (sizes[: sizes.index(-1)], sizes[sizes.index(-1) + 1 :])


def _regroup(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis] | None:
    """Axes of the given sizes over the same elements, or None if strides forbid it."""
    if prod(axis.size or 1 for axis in axes) != prod(sizes):
        return None
    if prod(sizes) == 0:
        return None
    merged: list[Axis] = []
    for axis in axes:  # runs of axes that one stride can walk
        if axis.size == 1:
            continue
        assert axis.size is not None, "the row axis is not regrouped"
        if merged and merged[-1].stride == axis.stride * axis.size:
            merged[-1] = Axis((merged[-1].size or 1) * axis.size, axis.stride)
        else:
            merged.append(axis)
    result: list[Axis] = []
    wanted = list(sizes)
    for run in merged:
        left, stack = run.size or 1, []
        while left > 1:
            if not wanted:
                return None
            size = wanted.pop(0)
            if left % size:
                return None
            left //= size
            stack.append((size, left))
        result += [Axis(size, run.stride * inner) for size, inner in stack]
    if any(size != 1 for size in wanted):
        return None
    return result + [Axis(1, 0)] * len(wanted)
