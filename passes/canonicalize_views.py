"""Views: `reshape`, `permute`, `unsqueeze`, `squeeze.dims`, `expand` and `slice`, with the fewest arguments."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from llmc.ir.sizes import number, same_shape, same_size
from llmc.passes.canonicalize_site import END, Site, aten


def _reshape(site: Site) -> fx.Node | None:
    x: fx.Node = site["self"]
    if same_shape(site.tensor("self"), site.val):
        return x
    sizes = site.sizes(site.val)
    if sizes is None:
        sizes = site["size"] if site["size"] is not None else site["shape"]
        if sizes is None or site.node.target is aten.reshape.default:
            return None
    if site.node.target is aten.reshape.default and list(site["shape"]) == list(sizes):
        return None
    return site.call(aten.reshape.default, x, list(sizes))


def _squeeze(site: Site) -> fx.Node | None:
    x: fx.Node = site["self"]
    sizes = [number(size) for size in site.tensor("self").shape]
    chosen = site["dim"] if site["dim"] is not None else list(range(len(sizes)))
    dims = [dim for dim in ([chosen] if isinstance(chosen, int) else chosen) if sizes[dim] == 1]
    if not dims:
        return x
    if site.node.target is aten.squeeze.dims and dims == list(site["dim"]):
        return None
    return site.call(aten.squeeze.dims, x, dims)


def _permute(order: Callable[[Site, int], list[int]]) -> Callable[[Site], fx.Node | None]:
    def respell(site: Site) -> fx.Node | None:
        rank = site.tensor("self").dim()
        dims = [dim % rank for dim in order(site, rank)]
        if dims == list(range(rank)):
            return site["self"]  # type: ignore[no-any-return]
        if site.node.target is aten.permute.default:
            return None
        return site.call(aten.permute.default, site["self"], dims)

    return respell


def _swapped(first: str, second: str) -> Callable[[Site, int], list[int]]:
    def order(site: Site, rank: int) -> list[int]:
        dims = list(range(rank))
        one, two = site[first] % rank, site[second] % rank
        dims[one], dims[two] = dims[two], dims[one]
        return dims

    return order


def _reversed(site: Site, rank: int) -> list[int]:
    return list(range(rank))[::-1]


def _expand(site: Site) -> fx.Node | None:
    """Enlarged dimensions by size, all others as -1."""
    x, sizes = site["self"], site["size"]
    have, want = site.tensor("self"), site.val
    if same_shape(have, want):
        return x  # type: ignore[no-any-return]
    added = want.dim() - have.dim()
    short: list[Any] = []
    for dim, size in enumerate(sizes):
        kept = dim >= added and same_size(have.shape[dim - added], want.shape[dim])
        known = number(want.shape[dim])
        short.append(-1 if kept else size if known is None else known)
    return None if short == list(sizes) else site.call(aten.expand.default, x, short)


def _repeat(site: Site) -> fx.Node | None:
    """Repetition of dimensions of size one is an expansion."""
    x, repeats = site["self"], list(site["repeats"])
    have = [number(size) for size in site.tensor("self").shape]
    added = len(repeats) - len(have)
    one = [dim < added or have[dim - added] == 1 for dim in range(len(repeats))]
    if not all(times == 1 or single for times, single in zip(repeats, one, strict=True)):
        return None
    sizes = [-1 if times == 1 and dim >= added else times for dim, times in enumerate(repeats)]
    return site.call(aten.expand.default, x, sizes)


def _slice(site: Site) -> fx.Node | None:
    """From a number to a number, or to the end; the whole dimension is no slice."""
    x, dim, step = site["self"], site["dim"], site["step"] or 1
    given = site["start"], site["end"]
    start, end = site["start"] or 0, END if site["end"] is None else site["end"]
    if step == 1 and same_shape(site.tensor("self"), site.val):
        return x  # type: ignore[no-any-return]
    size = number(site.tensor("self").shape[dim])
    if size is not None and isinstance(start, int) and isinstance(end, int):
        start = max(start + size, 0) if start < 0 else start
        end = max(end + size, 0) if end < 0 else end
        end = END if end >= size else end
    return (
        None
        if given == (start, end)
        else site.call(aten.slice.Tensor, x, dim, start, end, *([step] if step != 1 else []))
    )


def _narrow(site: Site) -> fx.Node | None:
    start, length = site["start"], site["length"]
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        return None
    return site.call(aten.slice.Tensor, site["self"], site["dim"], start, start + length)


def _select(site: Site) -> fx.Node | None:
    size, index = number(site.tensor("self").shape[site["dim"]]), site["index"]
    if size is None or not isinstance(index, int) or index >= 0:
        return None
    return site.call(aten.select.int, site["self"], site["dim"], index + size)


def _index(site: Site) -> fx.Node | None:
    """Places of one dimension that follow one another are a slice."""
    indices = [site["index"]] if site["indices"] is None else site["indices"]
    dim = site["dim"] if site["indices"] is None else next(d for d, one in enumerate(indices) if one is not None)
    given = [index for index in indices if index is not None]
    size = number(site.tensor("self").shape[dim])
    places = site.constant(given[0]) if len(given) == 1 and size is not None else None
    if size is None or places is None or places.dtype != torch.int64 or places.dim() != 1 or not len(places):
        return None
    start = int(places[0]) % size
    if not torch.equal(places % size, torch.arange(start, start + len(places))):
        return None
    return site.call(aten.slice.Tensor, site["self"], dim, start, start + len(places))


def _split(site: Site) -> fx.Node | None:
    """Equal parts by their sizes, when these are numbers."""
    sizes = [number(part.shape[site["dim"]]) for part in site.val]
    if None in sizes:
        return None
    return site.call(aten.split_with_sizes.default, site["self"], sizes, site["dim"])


def _cat(site: Site) -> fx.Node | None:
    tensors = site["tensors"]
    return tensors[0] if len(tensors) == 1 else None


VIEWS: dict[object, Callable[[Site], fx.Node | None]] = {
    **dict.fromkeys(
        (
            aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
            aten.unflatten.int, aten.view_as.default, aten.reshape_as.default,
        ),
        _reshape,
    ),
    **dict.fromkeys((aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims), _squeeze),
    aten.permute.default: _permute(lambda site, rank: site["dims"]),
    aten.transpose.int: _permute(_swapped("dim0", "dim1")),
    aten.swapaxes.default: _permute(_swapped("axis0", "axis1")),
    aten.t.default: _permute(_reversed),
    aten.numpy_T.default: _permute(_reversed),
    aten.mT.default: _permute(lambda site, rank: [*range(rank - 2), rank - 1, rank - 2]),
    aten.expand.default: _expand,
    aten.repeat.default: _repeat,
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    aten.select.int: _select,
    aten.index.Tensor: _index,
    aten.index_select.default: _index,
    aten.split.Tensor: _split,
    aten.chunk.default: _split,
    aten.cat.default: _cat,
}  # fmt: skip
"""Respellings of views, slices and parts."""
