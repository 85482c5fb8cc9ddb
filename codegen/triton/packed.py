"""The packed matrices among a program's weights, which are laid out in rows before the first step."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from llmc.ir.model import Model
from llmc.ir.packed_layout import TILE, padded_columns, tile_count

llmc = torch.ops.llmc


@dataclass(frozen=True)
class PackedWeight:
    """A matrix in tiles (see `llmc.ir.packed_formats`)."""

    parts: tuple[str, ...]
    format: str
    rows: int
    """Padded rows, of all experts together."""
    columns: int
    """Padded columns."""


def packed_weights(model: Model, names: Iterable[str]) -> tuple[PackedWeight, ...]:
    """Each packed matrix whose parts are among the weights `names`, once."""
    wanted = set(names)
    found: dict[tuple[str, ...], PackedWeight] = {}
    for node in model.calls(llmc.linear_packed.default, llmc.embedding_packed.default):
        _, parts, *rest = node.args
        format, n, k = rest[1:4] if node.target is llmc.linear_packed.default else rest[:3]
        _add(found, parts, str(format), tile_count(operator.index(n)), operator.index(k))  # type: ignore[arg-type]
    for node in model.calls(llmc.moe_packed.default):
        schema = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        given: dict[str, Any] = dict(zip(schema, node.args, strict=False)) | dict(node.kwargs)
        for role, columns in (("up", int(node.args[0].meta["val"].shape[-1])), ("down", int(given["width"]))):  # type: ignore[union-attr]
            tiles = int(given[role][0].meta["val"].shape[0])
            _add(found, given[role], str(given[f"{role}_format"]), tiles, columns)
    return tuple(weight for weight in found.values() if set(weight.parts) <= wanted)


def _add(found: dict[tuple[str, ...], PackedWeight], parts: Any, format: str, tiles: int, columns: int) -> None:  # noqa: ANN401 - nodes
    names = tuple(part.name for part in parts)
    found[names] = PackedWeight(names, format, tiles * TILE, padded_columns(columns))
