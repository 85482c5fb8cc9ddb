"""What a node's value is, without computing it: fake propagation of one call."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.torch_version import TorchVersion

from llmc.errors import InvalidGraph


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The mode that the fake tensors of `graph` belong to. Raises `InvalidGraph` when the graph has none."""
    for node in graph.nodes:
        for value in leaves(node.meta.get("val")):
            if isinstance(value, FakeTensor):
                return value.fake_mode
    raise InvalidGraph('no node has a fake tensor in meta["val"]; expected one on every placeholder')


def leaves(value: object) -> Iterator[object]:
    """The values in nested lists and tuples, from left to right."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def infer(mode: FakeTensorMode, target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a tensor, a number, or a tuple of them
    """What `target` returns on `args`, in which nodes stand for their `meta["val"]`. Raises what the op raises."""
    values = fx.map_arg((tuple(args), dict(kwargs)), lambda node: node.meta["val"])
    with torch._C.DisableTorchFunction(), _decompositions(), mode, torch.no_grad():
        return target(*values[0], **values[1])


def _decompositions() -> AbstractContextManager[None]:
    """Before torch 2.13 ops such as aten.linear, as C++ decomposes them, fix sizes that are to stay free: there, those
    of Python are used. It takes twice as long.
    """
    return enable_python_dispatcher() if TorchVersion(torch.__version__) < "2.13" else nullcontext()


def same_type(x: object, y: object) -> bool:
    """Whether two values have one dtype and provably the same sizes, leaf by leaf; sizes must be provably equal."""
    first, second = list(leaves(x)), list(leaves(y))
    return len(first) == len(second) and all(_same_leaf(a, b) for a, b in zip(first, second, strict=True))


def _same_leaf(x: object, y: object) -> bool:
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        if x.dtype != y.dtype or x.dim() != y.dim():
            return False
        return all(_same_size(a, b) for a, b in zip(x.shape, y.shape, strict=True))
    return isinstance(x, (int, torch.SymInt)) and isinstance(y, (int, torch.SymInt)) and _same_size(x, y)


def _same_size(x: int | torch.SymInt, y: int | torch.SymInt) -> bool:
    if isinstance(x, int) and isinstance(y, int):
        return x == y
    return str(x) == str(y) or bool(statically_known_true(x == y))
