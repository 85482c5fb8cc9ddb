"""The file of what a program has torch compute: what is written is read, and nothing else is."""

import json
from typing import Any

import pytest
import torch
from torch import fx, nn

from llmc.codegen.torch_calls import Layout, TorchCall, read_calls, spell_call, write_calls
from llmc.errors import ArtifactRejected
from llmc.ir.model import Origin


def call(target: Any = torch.ops.aten.erfc.default) -> TorchCall:
    """One op on a slice of the rows of a buffer."""
    graph = fx.Graph()
    x = graph.placeholder("x0")
    y = graph.call_function(target, (x,))
    y.name = "n0"
    for node in (x, y):
        node.meta.update(type="f32[T, 4]", origin=Origin())
    graph.output((y,))
    part, whole = Layout("f32", "T", 6, ((None, 0), (4, 1)), 2), Layout("f32", "T", 4, ((None, 0), (4, 1)))
    return TorchCall("T", (part,), (whole,), fx.GraphModule(nn.Module(), graph))


def test_what_is_written_is_read() -> None:
    (read,) = read_calls(write_calls([spell_call(call())]))
    assert (read.rows, read.inputs, read.outputs) == (call().rows, call().inputs, call().outputs)
    assert spell_call(read) == spell_call(call())


def test_equal_calls_are_spelled_alike_and_others_are_not() -> None:
    assert spell_call(call()) == spell_call(call())
    assert spell_call(call()) != spell_call(call(torch.ops.aten.sin.default))


@torch.library.custom_op("odd_calls::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_an_op_that_artifacts_may_not_hold_is_spelled_but_never_read() -> None:
    spelled = spell_call(call(torch.ops.odd_calls.twice.default))
    assert "odd_calls" in spelled
    with pytest.raises(ArtifactRejected, match="graph"):
        read_calls(write_calls([spelled]))


def changed(path: tuple[object, ...], value: object) -> bytes:
    document = json.loads(write_calls([spell_call(call())]))
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "an integer from 1 to 1"),
        (("calls", 0, "rows"), "S", "'T' or 'R'"),
        (("calls", 0, "rows"), "", "rows of this kind"),
        (("calls", 0, "inputs", 0, "width"), 5, "at least 6 elements"),
        (("calls", 0, "inputs", 0, "offset"), -1, "an integer from 0"),
        (("calls", 0, "inputs", 0, "dtype"), "f33", "found 'f33'"),
        (("calls", 0, "inputs", 0, "axes", 1), [4, -1], "an integer from 0"),
        (("calls", 0, "inputs", 0, "axes", 1), [None, 1], "one axis of rows"),
        (("calls", 0, "inputs", 0, "axes", 1), [4], "a size and a stride"),
        (("calls", 0, "inputs"), [], "inputs that are 0 tensors"),
        (("calls", 0, "outputs"), [], "a layout for each of 1 results"),
        (("calls", 0, "graph", "nodes", 0, "op"), "aten.from_file.default", "unknown or not allowed"),
        (("calls", 0, "graph", "nodes", 0, "args"), [{"node": "y"}], "before its definition"),
    ],
)
def test_anything_else_is_refused(path: tuple[object, ...], value: object, message: str) -> None:
    with pytest.raises(ArtifactRejected, match=message):
        read_calls(changed(path, value))
