"""Values that only linears read are stored as matrix units multiply them: in bfloat16, half the bytes to read again.

    narrowed(regions) -> regions        the same, where results of linears and of attention are stored rounded

Every linear would round them first. So nothing changes in matrix units, and no launch has to make rows ready for them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from llmc.codegen.layout import Buffer, View
from llmc.codegen.regions import Attention, Linear, Region
from llmc.codegen.triton.linear_formats import FORMS

NARROW = "bf16"


def narrowed(regions: Sequence[Region]) -> list[Region]:
    """Regions, of which those that make such values and those that read them have them in bfloat16."""
    uses, made, read = Counter[int](), Counter[int](), Counter[int]()
    for region in regions:
        uses.update(view.buffer.key for view in _views(region))
        target = region.target if isinstance(region, Linear) else None
        if isinstance(region, Attention):
            target = region.output
        if target is not None:
            made[target.buffer.key] += 1
        if isinstance(region, Linear) and isinstance(region.source, View) and may_read(region):
            read[region.source.buffer.key] += 1
    keys = {key for key, count in read.items() if made[key] and uses[key] == made[key] + count}
    return [_replaced(region, keys) for region in regions]


def takes(format: str, k: int) -> bool:
    """Whether linears of a format can read rows of k columns in bfloat16: they multiply in it, whole units of them.

    A program for one row has too few columns of six bits at once for loads of narrow numbers in the background.
    """
    form = FORMS[format]
    return form.multiplied == "bfloat16" and form.bits != 6 and form.units(k) * form.unit == k


def may_read(region: Linear) -> bool:
    """Whether a linear reads whole rows that can be in bfloat16."""
    source = region.source
    return (
        takes(region.format, region.k)
        and isinstance(source, View)
        and not source.indirect
        and source.offset == 0
        and source.buffer.width == region.k
        and source.is_contiguous
        and (source.buffer.place, source.buffer.dtype) in (("arena", "f32"), ("arena", NARROW))
    )


def is_ready(region: Linear) -> bool:
    """Whether the rows of a linear are as matrix units multiply them."""
    return isinstance(region.source, View) and region.source.buffer.dtype == NARROW and may_read(region)


def _views(value: object) -> Iterator[View]:
    if isinstance(value, View):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _views(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _views(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _views(item)


def _replaced(value: Any, keys: set[int]) -> Any:  # noqa: ANN401 - whatever regions are made of
    if isinstance(value, Buffer):
        return replace(value, dtype=NARROW) if value.key in keys else value
    if not any(view.buffer.key in keys for view in _views(value)):
        return value
    if isinstance(value, Mapping):
        return {name: _replaced(item, keys) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_replaced(item, keys) for item in value)
    changed = {field.name: _replaced(getattr(value, field.name), keys) for field in fields(value) if field.init}
    return replace(value, **changed)
