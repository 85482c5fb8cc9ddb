"""A call in a graph while it is respelled: its arguments by name, and the calls that take its place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from llmc.ir.infer import infer, leaves
from llmc.ir.model import Model
from llmc.ir.ops import accumulate_dtype
from llmc.ir.signature import arguments
from llmc.ir.sizes import number
from llmc.ir.tracing import short_name
from llmc.ir.weights import Constant

aten = torch.ops.aten

END = torch.iinfo(torch.int64).max
"""The end of a slice that goes to the end of its dimension."""

_IMPLIED = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking"})
"""Keyword arguments that say where and how a tensor is stored, which is not for the graph to say."""


class Site:
    """One call: what it is given, and new calls in front of it."""

    def __init__(self, model: Model, mode: FakeTensorMode, node: fx.Node) -> None:
        """The call `node` of `model`, whose fake tensors belong to `mode`."""
        self.model = model
        self.mode = mode
        self.node = node
        self.args = arguments(node)
        self.made: list[fx.Node] = []
        self.known: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        """For inputs by name: the values that the replacement relies on."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - a node or a constant
        """The argument called `name`, dimensions counted from the front; None when the call has none."""
        return self.args.get(name)

    @property
    def val(self) -> Any:  # noqa: ANN401 - a fake tensor, or several
        """The value of the call."""
        return self.node.meta["val"]

    def tensor(self, name: str) -> torch.Tensor:
        """The fake tensor of the argument called `name`."""
        value: torch.Tensor = self.args[name].meta["val"]
        return value

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:  # noqa: ANN401
        """A new call in front of this one, with its value and the origin of this one."""
        with self.node.graph.inserting_before(self.node):
            new = self.node.graph.create_node("call_function", target, args, kwargs, name=short_name(target))
        new.meta.update(val=infer(self.mode, target, new.args, new.kwargs), origin=self.node.meta.get("origin"))
        self.made.append(new)
        return new

    def constant(self, node: fx.Node) -> torch.Tensor | None:
        """The values of an argument that the model's own code computed, on which the replacement then relies."""
        weight = self.model.weights.get(node.name) if node.op == "placeholder" else None
        if not isinstance(weight, Constant):
            return None
        values = weight.tensor
        self.known[node.name] = lambda drawn: values.to(drawn.dtype)
        return values

    def sizes(self, val: torch.Tensor) -> list[Any] | None:
        """The sizes of `val` as arguments of a reshape: numbers, and -1 for the one that is symbolic.

        None when more than one is symbolic.
        """
        sizes = [number(size) for size in val.shape]
        return None if sizes.count(None) > 1 else [-1 if size is None else size for size in sizes]


def respell(node: fx.Node) -> bool:
    """Write the arguments of `node` in the one way: by position, dimensions from the front, defaults left out.

    A norm that is given no eps is given the number that aten takes then.
    """
    if not isinstance(node.target, OpOverload):
        return False
    named = arguments(node)
    if node.target is aten.rms_norm.default and named["eps"] is None:
        named["eps"] = torch.finfo(accumulate_dtype(node.meta["val"].dtype)).eps
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    last = 0
    for argument in node.target._schema.arguments:
        value = named.get(argument.name)
        given = not argument.has_default_value() or not _equal(value, argument.default_value)
        if argument.kwarg_only:
            if given and not (argument.name in _IMPLIED and _is_implied(value)):
                keywords[argument.name] = value
            continue
        positional.append(value)
        last = len(positional) if given else last
    args = tuple(_listed(value) for value in positional[:last])
    if _equal(args, tuple(_listed(value) for value in node.args)) and _equal(keywords, dict(node.kwargs)):
        return False
    node.args, node.kwargs = args, keywords
    return True


def _is_implied(value: object) -> bool:
    return not isinstance(value, torch.device) or value.type == "cpu"


def _listed(value: Any) -> Any:  # noqa: ANN401 - any argument
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _equal(x: object, y: object) -> bool:
    """Equality that tells 1 from 1.0 and True, and takes lists for tuples."""
    if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
        return len(x) == len(y) and all(map(_equal, x, y))
    if isinstance(x, dict) and isinstance(y, dict):
        return x.keys() == y.keys() and all(_equal(x[key], y[key]) for key in x)
    return x is y or (type(x) is type(y) and not any(isinstance(leaf, fx.Node) for leaf in leaves([x, y])) and x == y)
