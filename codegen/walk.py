"""What a region reads, writes and holds, found by walking its fields."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from llmc.codegen.layout import Buffer, View
from llmc.codegen.regions import Attention, Experts, Linear, Region, RowOp, RowRegion, TorchRegion

Held = TypeVar("Held")


def views(value: object) -> Iterator[View]:
    """Every view in a region or a part of one."""
    if isinstance(value, View):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from views(getattr(value, item.name))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from views(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from views(part)


def written(region: Region) -> list[Buffer]:
    """The buffers that a region writes, each once."""
    found: list[View | None] = []
    if isinstance(region, RowRegion):
        found = [output for op in region.ops for output in op.outputs]
    elif isinstance(region, Linear):
        found = [region.target, *(part.target for part in region.parts)]
    elif isinstance(region, (Attention, Experts)):
        found = [region.output]
    elif isinstance(region, TorchRegion):
        found = list(region.outputs)
    buffers = [view.buffer for view in found if view is not None and view.buffer.place in ("arena", "logits")]
    return list(dict.fromkeys(buffers))


def touched(region: Region) -> list[Buffer]:
    """The arena buffers that a region reads or writes, each once; not what its prologue only passes on."""
    inner: set[Buffer] = set()
    if isinstance(region, Linear) and isinstance(region.source, RowOp):
        inner = {output.buffer for output in region.source.outputs}
    found = dict.fromkeys(view.buffer for view in views(region) if view.buffer.place == "arena")
    return [buffer for buffer in found if buffer not in inner]


def weights_of(region: Region) -> list[str]:
    """Names of the weights that a region reads, each once."""
    names = [view.buffer.name for view in views(region) if view.buffer.place == "weight"]
    if isinstance(region, Linear):
        names += region.weights
    elif isinstance(region, Experts):
        names += [*region.up, *region.down]
    elif isinstance(region, RowRegion):
        for op in region.ops:
            packed = op.attrs.get("weights", ())
            assert isinstance(packed, tuple), "packed parts are a tuple of names"
            names += packed
    return list(dict.fromkeys(names))


def substitute(region: Region, old: Buffer, new: Buffer) -> Region:
    """The region with one buffer in another's place."""
    return rebuild(region, lambda view: replace(view, buffer=new) if view.buffer == old else view)


def rebuild(value: Held, change: Callable[[View], View]) -> Held:
    """The same with every view changed."""
    if isinstance(value, View):
        return change(value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        changed: dict[str, Any] = {item.name: rebuild(getattr(value, item.name), change) for item in fields(value)}
        return replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(rebuild(part, change) for part in value)  # type: ignore[return-value]
    return value
