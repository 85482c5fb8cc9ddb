"""What a native program has torch compute, as its artifact keeps it: graphs, and where their values lie in memory.

    {"format": "llmc-torch", "version": 1, "calls": [
        {"rows": "T", "inputs": [LAYOUT, ...], "outputs": [LAYOUT, ...], "graph": {...}}, ...]}
    LAYOUT: {"dtype": "f32", "rows": "T", "width": 96, "axes": [[null, 0], [96, 1]], "offset": 0}

Graphs are those of `llmc.ir.serialize`. Their inputs are tensors, then at most the number of rows. The program names a
call by its place, and the SHA-256 of the whole; reading trusts nothing all the same.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from llmc.codegen.layout import Domain
from llmc.errors import UnsupportedModel
from llmc.ir.schema_check import kind_of_type
from llmc.ir.serialize import load_graph, save_graph
from llmc.ir.show import DTYPES
from llmc.runtime.checked_json import Field, Json, canonical, parse

FORMAT, VERSION = "llmc-torch", 1
STORED = {text: dtype for dtype, text in DTYPES.items()}
"""The dtypes of elements in memory, by name. Flags that a program computes are bytes, "u8"."""

_MOST = 1 << 20
_MOST_ELEMENTS = 1 << 40


@dataclass(frozen=True)
class Layout:
    """Where a tensor lies in a buffer of rows; offsets and strides in elements, within one row."""

    dtype: str
    """Of the elements in memory, a key of `STORED`."""
    rows: Domain
    """What the rows of the buffer are; empty if it has none."""
    width: int
    """Elements of a row, or of the whole buffer."""
    axes: tuple[tuple[int | None, int], ...]
    """Size and stride of each axis; the size of the row axis is None."""
    offset: int = 0

    @property
    def row_axis(self) -> int | None:
        """Which axis runs over the rows; None if none does."""
        return next((place for place, (size, _) in enumerate(self.axes) if size is None), None)


@dataclass(frozen=True)
class TorchCall:
    """Operations on values in memory."""

    rows: Domain
    """The rows that they are done for, each by itself; empty if they are done once."""
    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]
    module: fx.GraphModule


def spell_call(call: TorchCall) -> str:
    """The JSON of one call. One that no artifact may hold is spelled too, to tell it apart; reading rejects it."""
    try:
        graph: object = json.loads(save_graph(call.module))
    except UnsupportedModel:
        nodes = call.module.graph.nodes
        graph = [f"{node.name} = {node.target}({node.args}, {dict(node.kwargs)})" for node in nodes]
    layouts = {"inputs": [_spell(layout) for layout in call.inputs], "outputs": [_spell(part) for part in call.outputs]}
    return json.dumps({"rows": call.rows, **layouts, "graph": graph}, sort_keys=True)


def write_calls(calls: Sequence[str]) -> bytes:
    """The file of the calls that `spell_call` spelled."""
    return canonical({"format": FORMAT, "version": VERSION, "calls": [json.loads(call) for call in calls]})


def digest(content: bytes) -> str:
    """What a program calls the file by."""
    return hashlib.sha256(content).hexdigest()


def read_calls(content: bytes) -> tuple[TorchCall, ...]:
    """The calls of a file, checked completely. Raises ArtifactRejected."""
    fields = parse(content, "torch calls").members(("format", "version", "calls"))
    fields["format"].choice(FORMAT)
    fields["version"].integer(VERSION, VERSION)
    return tuple(_call(item) for item in fields["calls"].items(_MOST))


def _spell(layout: Layout) -> dict[str, object]:
    return {
        "dtype": layout.dtype,
        "rows": layout.rows,
        "width": layout.width,
        "axes": [[size, stride] for size, stride in layout.axes],
        "offset": layout.offset,
    }


def _call(item: Field) -> TorchCall:
    fields = item.members(("rows", "inputs", "outputs", "graph"))
    rows = _domain(fields["rows"])
    inputs = tuple(_layout(part, rows) for part in fields["inputs"].items(_MOST))
    outputs = tuple(_layout(part, rows) for part in fields["outputs"].items(_MOST))
    module = load_graph(json.dumps(fields["graph"].value).encode())
    nodes = list(module.graph.nodes)
    given = [node for node in nodes if node.op == "placeholder"]
    kinds = [kind_of_type(node.meta["type"]) for node in given]
    if kinds[: len(inputs)] != ["tensor"] * len(inputs) or kinds[len(inputs) :] not in ([], ["size"]):
        fields["graph"].reject(f"inputs that are {len(inputs)} tensors, and at most the number of rows")
    if len(nodes[-1].args[0]) != len(outputs):
        fields["outputs"].reject(f"a layout for each of {len(nodes[-1].args[0])} results")
    return TorchCall(rows, inputs, outputs, module)


def _layout(item: Field, rows: Domain) -> Layout:
    fields = item.members(("dtype", "rows", "width", "axes", "offset"))
    axes = tuple(_axis(part) for part in fields["axes"].items(8))
    layout = Layout(
        fields["dtype"].choice(*STORED),
        _domain(fields["rows"]),
        fields["width"].integer(1, _MOST_ELEMENTS),
        axes,
        fields["offset"].integer(0, _MOST_ELEMENTS),
    )
    last = layout.offset + sum((size - 1) * stride for size, stride in axes if size is not None)
    if last >= layout.width:
        fields["width"].reject(f"at least {last + 1} elements, which the axes reach")
    several = sum(size is None for size, _ in axes)
    if several > 1 or (several and not rows) or (layout.rows and (layout.rows != rows or not several)):
        fields["axes"].reject("one axis of rows where the call is done for rows of this kind, none elsewhere")
    return layout


def _axis(item: Field) -> tuple[int | None, int]:
    pair = item.items(2)
    if len(pair) != 2:
        item.reject("a size and a stride")
    return pair[0].optional(lambda part: part.integer(1, _MOST_ELEMENTS)), pair[1].integer(0, _MOST_ELEMENTS)


def _domain(item: Field) -> Domain:
    found: Json = item.choice("", "T", "R")
    return "T" if found == "T" else "R" if found == "R" else ""


__all__ = ["STORED", "Layout", "TorchCall", "digest", "read_calls", "spell_call", "write_calls"]
