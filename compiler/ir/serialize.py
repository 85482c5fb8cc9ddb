"""Graphs to JSON and back. Reading trusts nothing: what is not exactly a graph of allowed ops is refused.

    {"format": "llmc-graph", "version": 1,
     "inputs": [{"name": "w", "type": "f32[8, 8]", "weight": true, "origin": ["model.w", ""]}, ...],
     "nodes": [{"name": "linear", "op": "aten.linear.default", "args": [{"node": "x"}, {"node": "w"}], "kwargs": {},
                "type": "f32[T, 8]", "origin": ["model.up", "model.py:3"]}, ...],
     "outputs": ["linear"]}

In arguments, {"node": NAME} is a value, {"dtype": "f32"}, {"device": "cpu"}, {"memory_format": "contiguous_format"},
{"layout": "strided"} and {"float": "inf"} are what JSON lacks; anything else is itself. Equal graphs are equal bytes.
"""

import json
import keyword
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch._ops import OpOverload

from llmc.errors import ArtifactRejected, UnsupportedModel
from llmc.ir.allowed import op_name, op_named
from llmc.ir.mask import validate
from llmc.ir.model import Origin
from llmc.ir.schema_check import Kind, SchemaMismatch, check_call, kind_of_type
from llmc.ir.show import DTYPES, size_letters, type_text

FORMAT, VERSION = "llmc-graph", 1

MAX_BYTES = 64 << 20
MAX_NODES = 1_000_000
MAX_TEXT = 64 << 10
MAX_DEPTH = 4
"""Lists in arguments nest no deeper."""
MAX_INTEGER = 1 << 40
"""Sizes and indices are below this; the ends of the int64 range are allowed too, as "to the end" of a slice."""

_ENDS = (torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}\Z", re.ASCII)
_CONSTANTS: dict[str, dict[str, object]] = {
    "dtype": {name: dtype for dtype, name in DTYPES.items()},
    "device": {"cpu": torch.device("cpu")},
    "memory_format": {
        "contiguous_format": torch.contiguous_format,
        "preserve_format": torch.preserve_format,
    },
    "layout": {"strided": torch.strided},
    "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan},
}
"""The values of the tagged constants, by tag and text."""


def save_graph(module: fx.GraphModule, weights: Collection[str] = ()) -> bytes:
    """The graph as JSON. `weights` names the placeholders that are weights.

    Raises `UnsupportedModel` when the graph calls an op or holds a constant that an artifact may not.
    """
    letters = size_letters(module.graph)
    inputs, nodes, outputs = [], [], []
    for node in module.graph.nodes:
        if node.op == "output":
            outputs = [value.name for value in node.args[0]]
            continue
        entry: dict[str, object] = {
            "name": node.name,
            "type": node.meta["type"] if "type" in node.meta else type_text(node.meta["val"], letters),
            "origin": _origin_parts(node),
        }
        if node.op == "placeholder":
            inputs.append({**entry, "weight": node.name in weights})
            continue
        name = op_name(node.target)
        if name is None:
            raise UnsupportedModel(f"{node.name}: {node.target} cannot be stored in an artifact; it is not in the list")
        kwargs = {key: _encode(value, node) for key, value in node.kwargs.items()}
        nodes.append({**entry, "op": name, "args": [_encode(arg, node) for arg in node.args], "kwargs": kwargs})
    head = json.dumps({"format": FORMAT, "version": VERSION})[:-1]
    parts = (f'"inputs": {_lines(inputs)}', f'"nodes": {_lines(nodes)}', f'"outputs": {json.dumps(outputs)}')
    return (head + ",\n" + ",\n".join(parts) + "}\n").encode()


def load_graph(data: bytes) -> fx.GraphModule:
    """The graph in `data`, checked completely before it is built.

    Each node has `meta["type"]` (text) and `meta["origin"]`; `meta["weights"]` of the module lists the names of the
    weight placeholders. Raises `ArtifactRejected` with what is wrong and where.
    """
    document = _parse(data)
    _expect_keys(document, {"format", "version", "inputs", "nodes", "outputs"}, "the graph")
    if document["format"] != FORMAT or document["version"] != VERSION or isinstance(document["version"], bool):
        _reject(f"format {document['format']!r:.40} version {document['version']!r:.40}; expected {FORMAT} {VERSION}")
    lists = {name: _list(document[name], name) for name in ("inputs", "nodes", "outputs")}
    if len(lists["inputs"]) + len(lists["nodes"]) > MAX_NODES:
        _reject(f"{len(lists['inputs']) + len(lists['nodes'])} nodes; expected at most {MAX_NODES}")
    reader = _Reader()
    for entry in lists["inputs"]:
        reader.add_input(entry)
    for entry in lists["nodes"]:
        reader.add_call(entry)
    reader.finish(lists["outputs"])
    module = fx.GraphModule(nn.Module(), reader.graph)
    module.meta["weights"] = reader.weights
    return module


class _Reader:
    """Builds a graph from checked entries."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.kinds: dict[fx.Node, Kind] = {}
        self.weights: list[str] = []

    def add_input(self, entry: object) -> None:
        fields = self._entry(entry, {"name", "type", "origin", "weight"})
        if not isinstance(fields["weight"], bool):
            _reject(f"input {fields['name']}: weight is {fields['weight']!r:.40}; expected true or false")
        if fields["weight"] and len(self.weights) < len(self.values):
            _reject(f"input {fields['name']}: is a weight after an input; weights come first")
        kind = kind_of_type(fields["type"])
        if fields["weight"]:
            self.weights.append(fields["name"])
        self._define(self.graph.placeholder(fields["name"]), fields, kind)

    def add_call(self, entry: object) -> None:
        fields = self._entry(entry, {"name", "type", "origin", "op", "args", "kwargs"})
        where = f"node {fields['name']}"
        target = op_named(fields["op"]) if isinstance(fields["op"], str) else None
        if target is None:
            _reject(f"{where}: op {fields['op']!r:.80} is unknown or not allowed in an artifact")
        args = [self._decode(value, where) for value in _list(fields["args"], f"{where}: args")]
        if not isinstance(fields["kwargs"], dict):
            _reject(f"{where}: kwargs is {type(fields['kwargs']).__name__}; expected an object")
        kwargs = {key: self._decode(value, where) for key, value in fields["kwargs"].items()}
        try:
            kind = check_call(target, args, kwargs, self.kinds)
        except SchemaMismatch as mismatch:
            _reject(f"{where}: {fields['op']}: {mismatch}")
        if isinstance(target, OpOverload):
            self._check_meaning(where, target, args, kwargs)
        if kind_of_type(fields["type"]) != kind:
            _reject(f"{where}: type {fields['type']!r:.80}; {fields['op']} returns a {kind}")
        node = self.graph.create_node("call_function", target, tuple(args), kwargs, name=fields["name"])
        self._define(node, fields, kind)

    def finish(self, outputs: Sequence[object]) -> None:
        if not outputs:
            _reject("outputs is empty; expected at least one")
        for name in outputs:
            if not isinstance(name, str) or name not in self.values or self.kinds[self.values[name]] != "tensor":
                _reject(f"output {name!r:.80}: is no tensor of the graph")
        self.graph.output(tuple(self.values[name] for name in outputs if isinstance(name, str)))

    def _entry(self, entry: object, keys: set[str]) -> dict[str, Any]:
        if not isinstance(entry, dict):
            _reject(f"an entry is {type(entry).__name__}; expected an object")
        name = entry.get("name")
        if not isinstance(name, str) or not _NAME.match(name) or keyword.iskeyword(name):
            _reject(f"name {name!r:.80}: expected a letter or underscore, then letters, digits, underscores")
        where = f"node {name}"
        _expect_keys(entry, keys, where)
        if name in self.values:
            _reject(f"{where}: is defined twice")
        if not isinstance(entry["type"], str) or len(entry["type"]) > 4096 or kind_of_type(entry["type"]) is None:
            _reject(f"{where}: type {entry['type']!r:.80}; expected one such as f32[T, 2048]")
        origin = entry["origin"]
        if not isinstance(origin, list) or len(origin) != 2 or not all(_is_text(part) for part in origin):
            _reject(f"{where}: origin {origin!r:.80}; expected a module path and a source line")
        return entry

    def _define(self, node: fx.Node, fields: Mapping[str, Any], kind: Kind | None) -> None:
        if node.name != fields["name"] or kind is None:
            _reject(f"node {fields['name']}: the name is reserved")
        node.meta.update(type=fields["type"], origin=Origin(*fields["origin"]))
        self.values[node.name] = node
        self.kinds[node] = kind

    def _decode(self, value: object, where: str, depth: int = 0) -> Any:  # noqa: ANN401 - any argument
        if isinstance(value, list):
            if depth >= MAX_DEPTH:
                _reject(f"{where}: lists nest deeper than {MAX_DEPTH}")
            return [self._decode(item, where, depth + 1) for item in value]
        if isinstance(value, dict):
            return self._decode_tagged(value, where)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER and value not in _ENDS:
            _reject(f"{where}: integer {value!r:.40} is beyond {MAX_INTEGER}")
        if isinstance(value, str) and not _is_text(value):
            _reject(f"{where}: a text of {len(value)} characters; expected at most {MAX_TEXT}")
        return value

    def _decode_tagged(self, value: dict[str, object], where: str) -> object:
        if len(value) == 1:
            ((tag, text),) = value.items()
            if tag == "node" and isinstance(text, str):
                if text not in self.values:
                    _reject(f"{where}: uses {text!r:.80} before its definition")
                return self.values[text]
            if tag in _CONSTANTS and isinstance(text, str) and text in _CONSTANTS[tag]:
                return _CONSTANTS[tag][text]
        _reject(f"{where}: argument {json.dumps(value)[:80]} is no value and no constant")

    def _check_meaning(self, where: str, target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """What a schema does not say: formulas are formulas, and only inputs are written to."""
        for place, argument in enumerate(target._schema.arguments):
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            if target.namespace == "llmc" and argument.name in ("mask", "bias") and isinstance(value, str):
                try:
                    validate(value, "predicate" if argument.name == "mask" else "number")
                except Exception as error:
                    _reject(f"{where}: {error}")
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes and not (
                isinstance(value, fx.Node) and value.op == "placeholder" and value.name not in self.weights
            ):
                _reject(f"{where}: writes to {value}; expected an input of the graph")


def _encode(value: object, node: fx.Node) -> object:
    """An argument as JSON. Raises `UnsupportedModel` for what the format does not know."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(item, node) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for tag, constants in _CONSTANTS.items():
        for text, constant in constants.items():
            if tag != "float" and type(constant) is type(value) and constant == value:
                return {tag: text}
    raise UnsupportedModel(f"{node.name}: argument {value!r} cannot be stored in an artifact")


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        _reject(f"{len(data)} bytes; expected at most {MAX_BYTES}")
    try:
        document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _reject(f"is not JSON: {error}")
    if not isinstance(document, dict):
        _reject(f"is {type(document).__name__}; expected an object")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _expect_keys(entry: Mapping[str, object], keys: set[str], where: str) -> None:
    if set(entry) != keys:
        wrong = sorted(set(entry) ^ keys)
        _reject(f"{where}: {wrong[0]!r:.40} is {'missing' if wrong[0] in keys else 'unknown'}")


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        _reject(f"{where} is {type(value).__name__}; expected a list")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _lines(entries: Sequence[object]) -> str:
    return "[" + ",".join("\n" + json.dumps(entry, sort_keys=True) for entry in entries) + "]"


def _origin_parts(node: fx.Node) -> list[str]:
    origin = node.meta.get("origin", Origin())
    return [origin.module, origin.source]


def _reject(what: str) -> NoReturn:
    raise ArtifactRejected(f"graph: {what}")
