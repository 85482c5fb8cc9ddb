"""Graphs to JSON and back: round trips, and files made to do harm."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.check_pass import trace
from torch import Tensor, nn

from llmc.errors import ArtifactRejected, UnsupportedModel
from llmc.ir.allowed import op_named
from llmc.ir.model import Model
from llmc.ir.serialize import MAX_INTEGER, load_graph, save_graph


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.masked_fill(self.up(tokens), mask, float("-inf")).reshape(tokens.shape[0] * 2, 6)
        top = torch.topk(y, 2)
        a, b = torch.softmax(top.values, -1).to(torch.bfloat16).split([1, 1], -1)
        return a, tokens[:, 1:] + b.shape[0]


@pytest.fixture(scope="module")
def model() -> Model:
    return trace(Block(), torch.ones(3, 8), torch.zeros(3, 12, dtype=torch.bool), dynamic={0: [0], 1: [0]})


@pytest.fixture(scope="module")
def data(model: Model) -> bytes:
    return save_graph(model.graph_module, model.weights)


def test_saving_a_loaded_graph_gives_the_same_bytes(data: bytes) -> None:
    loaded = load_graph(data)
    assert save_graph(loaded, loaded.meta["weights"]) == data


def test_a_loaded_graph_computes_the_same(model: Model, data: bytes) -> None:
    inputs = torch.randn(5, 8), torch.rand(5, 12) < 0.3
    loaded = Model(load_graph(data), model.weights)
    for have, want in zip(loaded.run(*inputs), model.run(*inputs), strict=True):
        assert torch.equal(have, want)


def test_types_and_origins_are_kept(data: bytes) -> None:
    nodes = {node.name: node for node in load_graph(data).graph.nodes}
    assert nodes["linear"].meta["type"] == "f32[T, 12]"
    assert str(nodes["linear"].meta["origin"]) == "up"
    assert nodes["topk"].meta["type"] == "(f32[2*T, 2], i64[2*T, 2])"


def test_weights_are_listed(data: bytes) -> None:
    assert load_graph(data).meta["weights"] == ["up_weight"]


def test_an_op_outside_of_the_list_is_not_saved() -> None:
    model = trace(lambda x: torch.fft.fft(x).real, torch.randn(4))
    with pytest.raises(UnsupportedModel, match="cannot be stored in an artifact; it is not in the list"):
        save_graph(model.graph_module)


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default", "aten.set_.source_Storage", "aten.resize_.default", "aten.as_strided.default",
        "aten.add.out", "aten.add_.Tensor", "aten.empty.memory_format", "aten._unsafe_index.Tensor", "aten.view.dtype",
        "aten.add", "aten", "", "operator.call", "builtins.exec", "os.system", "llmc.ghost.default", "llmc.rope",
        "prims.mul.default", "aten.__class__.mro", "operator.getitem.__class__", "debugprims.load_tensor.default",
    ],
)  # fmt: skip
def test_an_op_that_could_do_harm_is_unknown(name: str, data: bytes) -> None:
    assert op_named(name) is None
    document = json.loads(data)
    document["nodes"][0]["op"] = name
    with pytest.raises(ArtifactRejected, match="is unknown or not allowed in an artifact"):
        load_graph(json.dumps(document).encode())


def _call(document: dict[str, Any], op: str) -> dict[str, Any]:
    found: dict[str, Any] = next(node for node in document["nodes"] if node["op"] == op)
    return found


def _damage(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of one place; the first part of `path` may be an op."""

    def change(document: dict[str, Any]) -> None:
        at: Any = document
        *parents, last = path.split("/")
        for part in parents:
            at = _call(document, part) if "." in part else at[int(part) if isinstance(at, list) else part]
        at[int(last) if isinstance(at, list) else last] = value

    return change


def _drop(path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        at: Any = document
        *parents, last = path.split("/")
        for part in parents:
            at = at[int(part) if isinstance(at, list) else part]
        del at[last]

    return change


LINEAR, TOPK, SLICE = "aten.linear.default", "aten.topk.default", "aten.slice.Tensor"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_damage("format", "zip"), "format 'zip' version 1; expected llmc-graph 1"),
        (_damage("version", 2), "version 2; expected llmc-graph 1"),
        (_damage("version", True), "version True; expected"),
        (_damage("extra", 1), "the graph: 'extra' is unknown"),
        (_drop("nodes"), "the graph: 'nodes' is missing"),
        (_damage("nodes", {}), "nodes is dict; expected a list"),
        (_damage("nodes/0", 3), "an entry is int; expected an object"),
        (_drop("nodes/0/args"), "'args' is missing"),
        (_damage("nodes/0/extra", 3), "'extra' is unknown"),
        (_damage("nodes/0/name", "x; import os"), "expected a letter or underscore"),
        (_damage("nodes/0/name", "a\n"), "expected a letter or underscore"),
        (_damage("nodes/0/name", "lambda"), "name 'lambda'"),
        (_damage("nodes/0/name", "a" * 201), "expected a letter or underscore"),
        (_damage("nodes/0/name", "tokens"), "node tokens: is defined twice"),
        (_damage("nodes/0/name", "print"), "node print: the name is reserved"),
        (_damage("nodes/0/name", None), "name None"),
        (_damage("nodes/0/op", ["aten"]), "is unknown or not allowed"),
        (_damage("nodes/0/kwargs", []), "kwargs is list; expected an object"),
        (_damage(f"{LINEAR}/args/1", {"node": "topk"}), "uses 'topk' before its definition"),
        (_damage(f"{LINEAR}/args/1", {"node": "linear"}), "uses 'linear' before its definition"),
        (_damage(f"{LINEAR}/args/1", {"node": 3}), "is no value and no constant"),
        (_damage(f"{LINEAR}/args/1", {"node": "tokens", "dtype": "f32"}), "is no value and no constant"),
        (_damage(f"{LINEAR}/args/1", {"pickle": "gASV"}), "is no value and no constant"),
        (_damage(f"{LINEAR}/args/1", "tokens"), r"argument 'weight' is tokens; expected Tensor"),
        (_damage(f"{LINEAR}/args/1", None), r"argument 'weight' is None; expected Tensor"),
        (_damage(f"{LINEAR}/args", [{"node": "tokens"}]), "argument 'weight' is missing"),
        (_damage(f"{LINEAR}/args", [{"node": "tokens"}] * 4), "4 positional arguments; expected at most 3"),
        (_damage(f"{LINEAR}/kwargs", {"out": {"node": "tokens"}}), "argument 'out' is unknown"),
        (_damage(f"{LINEAR}/kwargs", {"weight": {"node": "tokens"}}), "argument 'weight' is given twice"),
        (_damage(f"{LINEAR}/type", "f32[T; 2]"), "expected one such as f32"),
        (_damage(f"{LINEAR}/type", "f32[999999999999999, 9]"), "expected one such as f32"),
        (_damage(f"{LINEAR}/type", "f32[1, 1, 1, 1, 1, 1, 1, 1, 1]"), "expected one such as f32"),
        (_damage(f"{LINEAR}/type", "c64[T]"), "expected one such as f32"),
        (_damage(f"{LINEAR}/type", "(f32[T], f32[T])"), "returns a tensor"),
        (_damage(f"{LINEAR}/type", "T"), "returns a tensor"),
        (_damage(f"{LINEAR}/type", 3), "expected one such as f32"),
        (_damage(f"{LINEAR}/origin", "x"), "origin 'x'; expected a module path and a source line"),
        (_damage(f"{LINEAR}/origin", ["a" * 70000, ""]), "expected a module path and a source line"),
        (_damage(f"{TOPK}/args/1", 2.5), "argument 'k' is 2.5; expected int"),
        (_damage(f"{TOPK}/args/1", MAX_INTEGER + 1), "is beyond"),
        (_damage(f"{TOPK}/args/1", -(2**63) - 1), "is beyond"),
        (_damage(f"{TOPK}/args/1", 10**300), "is beyond"),
        (_damage(f"{TOPK}/args/1", [[[[[1]]]]]), "lists nest deeper than 4"),
        (_damage(f"{TOPK}/args/1", "a" * 70000), "a text of 70000 characters"),
        (_damage(f"{SLICE}/args/1", True), "argument 'dim' is True; expected int"),
        (_damage("operator.getitem/args/1", -1), "picks -1; expected a number from 0"),
        (_damage("operator.getitem/args/0", {"node": "linear"}), "picks from what is no result of several tensors"),
        (_damage("operator.mul/args/0", {"node": "linear"}), "calculates with what is no size"),
        (_damage("operator.mul/args", [1]), "1 arguments; expected two"),
        (_damage("aten._to_copy.default/kwargs/dtype", "f32"), "argument 'dtype' is f32; expected Optional"),
        (_damage("aten._to_copy.default/kwargs/dtype", {"dtype": "q4"}), "is no value and no constant"),
        (_damage("aten._to_copy.default/kwargs/dtype", {"device": "cpu"}), "argument 'dtype' is cpu"),
        (_damage("outputs", []), "outputs is empty"),
        (_damage("outputs", ["ghost"]), "output 'ghost': is no tensor of the graph"),
        (_damage("outputs", ["topk"]), "output 'topk': is no tensor of the graph"),
        (_damage("inputs/0/weight", "yes"), "weight is 'yes'; expected true or false"),
        (_damage("inputs/1/weight", 1), "weight is 1; expected true or false"),
        (_damage("inputs/2/weight", True), "is a weight after an input; weights come first"),
    ],
)
def test_a_damaged_graph_is_refused_with_what_and_where(
    change: Callable[[dict[str, Any]], None], message: str, data: bytes
) -> None:
    document = json.loads(data)
    change(document)
    with pytest.raises(ArtifactRejected, match=message):
        load_graph(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "is list; expected an object"),
        (b'{"format": NaN}', "NaN is no JSON number"),
        (b'{"format": 1, "format": 2}', "has a key twice"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"version": ' + b"9" * 10_000 + b"}", "is not JSON"),
    ],
)
def test_what_is_no_graph_file_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ArtifactRejected, match=message):
        load_graph(text)


CACHED = {
    "format": "llmc-graph",
    "version": 1,
    "inputs": [
        {"name": name, "type": "f32[T, 2, 4]", "weight": name == "w", "origin": ["", ""]}
        for name in ("w", "q", "k_cache", "v_cache")
    ],
    "nodes": [
        {
            "name": "y",
            "op": "llmc.cached_attention.default",
            "args": [{"node": "q"}] * 3
            + [{"node": "k_cache"}, {"node": "v_cache"}]
            + [{"node": "q"}] * 5
            + [None, [], "k <= q", "0", 0.5, 0.0],
            "kwargs": {},
            "type": "f32[T, 2, 4]",
            "origin": ["", ""],
        }
    ],
    "outputs": ["y"],
}


def _cached(place: int, value: object) -> bytes:
    document = json.loads(json.dumps(CACHED))
    document["nodes"][0]["args"][place] = value
    return json.dumps(document).encode()


def test_a_cache_may_be_written() -> None:
    load_graph(json.dumps(CACHED).encode())


def test_a_weight_may_not_be_written() -> None:
    with pytest.raises(ArtifactRejected, match="node y: writes to w; expected an input of the graph"):
        load_graph(_cached(3, {"node": "w"}))


def test_a_mask_that_is_code_is_refused() -> None:
    with pytest.raises(ArtifactRejected, match="mask formula"):
        load_graph(_cached(12, "__import__('os').system('true')"))


def test_damaged_bytes_are_refused_or_give_a_valid_graph(data: bytes) -> None:
    chance = random.Random(0)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(damaged))
            match chance.randrange(3):
                case 0:
                    damaged[at] = chance.randrange(256)
                case 1:
                    del damaged[at : at + chance.randint(1, 40)]
                case _:
                    start = chance.randrange(len(damaged))
                    damaged[at:at] = damaged[start : start + chance.randint(1, 40)]
        try:
            load_graph(bytes(damaged)).graph.lint()
        except ArtifactRejected:
            refused += 1
    assert refused > 1000
