"""The ops that only look at a value in another way, done on views: no code runs for them."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from llmc.codegen.layout import Axis, Buffer, Domain, View, drop, expand, fresh, insert, narrow, permute, reshape

aten = torch.ops.aten

VIEWS = frozenset({
    aten.reshape.default, aten.view.default, aten.select.int, aten.slice.Tensor, aten.unsqueeze.default,
    aten.squeeze.dims, aten.permute.default, aten.expand.default, aten.split_with_sizes.default, aten.alias.default,
    aten.t.default, aten.transpose.int,
})  # fmt: skip


def shape_of(node: fx.Node) -> tuple[int | None, ...]:
    """The sizes of a node's value, None where it is symbolic (the row axis)."""
    return tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)


def own_view(node: fx.Node, key: int, domain: Domain, dtype: str) -> View:
    """A view of a new arena buffer that holds the node's value."""
    shape = shape_of(node)
    width = 1
    for size in shape:
        width *= 1 if size is None else size
    return fresh(Buffer(key, node.name, domain, width, dtype, "arena"), shape)


def is_cast(node: fx.Node) -> bool:
    """Whether a node casts floats to floats, which changes nothing of a value in memory: that has float32 anyway."""
    if node.target is not aten._to_copy.default:
        return False
    source, value = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return bool(source.is_floating_point() and value.is_floating_point())


def apply(node: fx.Node, view: View) -> View | list[View] | None:
    """The result of a view op on `view`; None if it needs a copy."""
    args: Any = node.args
    match node.target:
        case aten.alias.default:
            return view
        case aten._to_copy.default:
            return view if is_cast(node) and view.buffer.place == "arena" and view.buffer.dtype == "f32" else None
        case aten.reshape.default | aten.view.default:
            return reshape(view, shape_of(node))
        case aten.expand.default:
            return expand(view, shape_of(node))
        case aten.permute.default:
            return permute(view, [place % len(view.axes) for place in args[1]])
        case aten.t.default:
            return permute(view, [1, 0])
        case aten.transpose.int:
            order = list(range(len(view.axes)))
            order[args[1]], order[args[2]] = order[args[2]], order[args[1]]
            return permute(view, order)
        case aten.unsqueeze.default:
            return insert(view, args[1] % (len(view.axes) + 1))
        case aten.squeeze.dims:
            places = sorted((place % len(view.axes) for place in args[1]), reverse=True)
            for place in places:
                if view.axes[place].size == 1:
                    view = drop(view, place)
            return view
        case aten.select.int:
            place = args[1] % len(view.axes)
            size = view.axes[place].size
            if size is None:
                return None
            chosen = narrow(view, place, args[2] % size, 1)
            return None if chosen is None else drop(chosen, place)
        case aten.slice.Tensor:
            return _slice(view, args)
        case aten.split_with_sizes.default:
            return _split(view, args[1], (args[2] if len(args) > 2 else node.kwargs.get("dim", 0)))
        case _:
            return None


def _slice(view: View, args: Sequence[Any]) -> View | None:
    place = (args[1] if len(args) > 1 else 0) % len(view.axes)
    size = view.axes[place].size
    start = args[2] if len(args) > 2 and args[2] is not None else 0
    stop = args[3] if len(args) > 3 and args[3] is not None else 1 << 62
    step = args[4] if len(args) > 4 else 1
    if size is None:
        return view if start == 0 and isinstance(stop, int) and stop > 1 << 40 and step == 1 else None
    start, stop, step = slice(start, stop, step).indices(size)
    return narrow(view, place, start, max(0, -(-(stop - start) // step)), step)


def _split(view: View, sizes: Sequence[int], dim: object) -> list[View] | None:
    place = cast(int, dim) % len(view.axes)
    if view.axes[place].size is None:
        return None
    parts, start = [], 0
    for size in sizes:
        part = narrow(view, place, start, size)
        assert part is not None, "the row axis was excluded"
        parts.append(part)
        start += size
    return parts


def apply_cat(output: View, dim: int, sources: Sequence[View]) -> list[View] | None:
    """The parts of `output` that the sources of a concatenation fill; None along the row axis."""
    place = dim % len(output.axes)
    sizes = [source.axes[place].size for source in sources]
    return _split(output, [size for size in sizes if size is not None], place) if None not in sizes else None


def columns(view: View) -> list[int] | None:
    """First column of each head of a `[rows, heads, size]` view with contiguous heads, or of the one head of a
    `[rows, size]` view; None for other views."""
    if len(view.axes) == 2:
        view = insert(view, 1)
    if len(view.axes) != 3 or view.axes[0].size is not None:
        return None
    heads, size = view.axes[1], view.axes[2]
    if heads.size is None or size.size is None or (size.stride != 1 and size.size != 1):
        return None
    return [view.offset + head * heads.stride for head in range(heads.size)]


__all__ = ["VIEWS", "Axis", "apply", "apply_cat", "columns", "is_cast", "own_view", "shape_of"]
