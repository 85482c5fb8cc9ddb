"""Weights as recipes: what to compute from the tensors of a checkpoint, evaluated one weight at a time.

A recipe knows its shape and dtype without reading anything. `evaluate` reads what it needs, computes, and keeps
nothing, so a model of any size is compiled in the memory of its largest weight. Order matters (concatenate, then
quantize), which is why a transformed weight is an expression and not a side effect.
"""

import hashlib
import operator
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llmc.errors import BadInput, InvalidGraph


class Reader(Protocol):
    """A checkpoint whose tensors are read one by one; `llmc.frontend` has the implementations."""

    def names(self) -> Collection[str]:
        """Every name of a tensor, tied ones included."""

    def key(self, name: str) -> str:
        """The one key of the tensor called `name`: tied names have the same. Raises `BadInput` for an unknown name."""

    def shape(self, key: str) -> tuple[int, ...]:
        """Sizes of the tensor as `read` returns it."""

    def dtype(self, key: str) -> torch.dtype:
        """Element type of the tensor as `read` returns it."""

    def read(self, key: str) -> torch.Tensor:
        """The tensor, mapped from the file where possible. Callers must not write to it."""


class Weight(ABC):
    """A recipe for one tensor. Recipes are immutable; two are equal when they compute the same thing the same way."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str
    """Dotted name in the checkpoint; empty for a weight that has none."""
    digest: str
    """Identity by value: equal recipes have equal digests, within one process."""

    @abstractmethod
    def inputs(self) -> Iterator["Weight"]:
        """The recipes that this one reads, in order, repeated when read twice."""

    @abstractmethod
    def compute(self, value: Callable[["Weight"], torch.Tensor]) -> torch.Tensor:
        """The tensor, given the values of `inputs`."""

    @abstractmethod
    def describe(self) -> str:
        """The recipe for people, such as `cat((q_proj.weight, k_proj.weight))`."""

    def evaluate(self) -> torch.Tensor:
        """Read and compute the tensor. Nothing is kept: each intermediate is dropped after its last use."""
        readers = Counter(inner for weight in self.walk() for inner in weight.inputs())
        values: dict[Weight, torch.Tensor] = {}

        def value(weight: Weight) -> torch.Tensor:
            result = values.pop(weight) if weight in values else weight.compute(value)
            readers[weight] -= 1
            if readers[weight] > 0:
                values[weight] = result
            return result

        with torch.no_grad():
            return value(self)

    def walk(self) -> Iterator["Weight"]:
        """This recipe and every recipe below it, each once, itself first."""
        seen: set[Weight] = {self}
        stack: list[Weight] = [self]
        while stack:
            weight = stack.pop()
            yield weight
            fresh = [inner for inner in dict.fromkeys(weight.inputs()) if inner not in seen]
            seen.update(fresh)
            stack.extend(reversed(fresh))

    def sources(self) -> list["Source"]:
        """The checkpoint tensors that the recipe reads, each once."""
        return [weight for weight in self.walk() if isinstance(weight, Source)]

    def fake(self, mode: FakeTensorMode) -> torch.Tensor:
        """A fake tensor of this shape and dtype; nothing is read."""
        with mode:
            return torch.empty(self.shape, dtype=self.dtype)

    @property
    def nbytes(self) -> int:
        """Size of the evaluated tensor in bytes."""
        elements = 1
        for size in self.shape:
            elements *= size
        return elements * self.dtype.itemsize

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weight) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()}: {_dtype_name(self.dtype)}{list(self.shape)})"


@dataclass(frozen=True, eq=False, repr=False)
class Source(Weight):
    """One tensor of a checkpoint. Equal to another of the same reader and key, so tied weights are equal."""

    reader: Reader
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str = ""
    digest: str = field(init=False)

    @classmethod
    def of(cls, reader: Reader, name: str) -> "Source":
        """The tensor called `name`. Raises `BadInput` when the checkpoint has none."""
        key = reader.key(name)
        return cls(reader, key, reader.shape(key), reader.dtype(key))

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.key)
        object.__setattr__(self, "digest", _digest("source", id(self.reader), self.key))

    def inputs(self) -> Iterator[Weight]:
        """None."""
        return iter(())

    def compute(self, value: Callable[[Weight], torch.Tensor]) -> torch.Tensor:
        """Read the tensor. Raises `BadInput` when it is not what the reader announced."""
        tensor = self.reader.read(self.key)
        if tuple(tensor.shape) != self.shape or tensor.dtype != self.dtype:
            found = f"{_dtype_name(tensor.dtype)}{list(tensor.shape)}"
            raise BadInput(f"{self.key}: read {found}, expected {_dtype_name(self.dtype)}{list(self.shape)}")
        return tensor.detach()

    def describe(self) -> str:
        """The last two parts of the name."""
        return ".".join(self.name.split(".")[-2:])


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Weight):
    """A small tensor that the model's own code computed, held in memory. Equal to another of the same content."""

    tensor: torch.Tensor
    name: str = ""
    shape: tuple[int, ...] = field(init=False)
    dtype: torch.dtype = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        tensor = self.tensor.detach()
        content = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        object.__setattr__(self, "tensor", tensor)
        object.__setattr__(self, "shape", tuple(tensor.shape))
        object.__setattr__(self, "dtype", tensor.dtype)
        object.__setattr__(self, "digest", _digest("constant", tensor.dtype, tuple(tensor.shape), content))

    def inputs(self) -> Iterator[Weight]:
        """None."""
        return iter(())

    def compute(self, value: Callable[[Weight], torch.Tensor]) -> torch.Tensor:
        """The tensor itself."""
        return self.tensor

    def describe(self) -> str:
        """The name, or the value of a single number, or the type."""
        if self.name:
            return self.name
        if self.tensor.dim() == 0:
            return repr(self.tensor.item())
        return f"constant {_dtype_name(self.dtype)}{list(self.shape)}"


@dataclass(frozen=True, eq=False, repr=False)
class Expr(Weight):
    """An ATen op over recipes and constants, run in eager torch: `Expr(aten.cat.default, ([q, k, v],), {}, ...)`.

    Lists become tuples. Arguments other than recipes must be plain constants; `InvalidGraph` otherwise. A cast is
    `aten._to_copy`.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str = ""
    output: int | None = None
    """Which output to take of an op that returns several."""
    digest: str = field(init=False)

    @classmethod
    def of(cls, target: Callable[..., Any], *args: object, output: int | None = None, **kwargs: object) -> "Expr":
        """The op applied to `args`; shape and dtype are inferred with fake tensors."""
        with FakeTensorMode() as mode:
            result = target(*_map(args, lambda w: w.fake(mode)), **_map(kwargs, lambda w: w.fake(mode)))
        value = result if output is None else result[output]
        if not isinstance(value, torch.Tensor):
            raise InvalidGraph(f"{target}: returns {type(value).__name__}, expected a tensor; name one with output=")
        return cls(target, args, kwargs, tuple(value.shape), value.dtype, output=output)

    def __post_init__(self) -> None:
        args, kwargs = _map(tuple(self.args), lambda w: w), _map(dict(self.kwargs), lambda w: w)
        spelled = _map((args, tuple(sorted(kwargs.items()))), operator.attrgetter("digest"))
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "kwargs", kwargs)
        object.__setattr__(self, "digest", _digest("expr", self.target, spelled, self.output))

    def inputs(self) -> Iterator[Weight]:
        """The recipes among the arguments."""
        found: list[Weight] = []
        _map((self.args, self.kwargs), found.append)
        return iter(found)

    def compute(self, value: Callable[[Weight], torch.Tensor]) -> torch.Tensor:
        """Apply the op to the values of its arguments."""
        result = self.target(*_map(self.args, value), **_map(self.kwargs, value))
        return cast(torch.Tensor, result if self.output is None else result[self.output])

    def describe(self) -> str:
        """The op as a call; a cast or a view shows what it makes."""
        op = str(getattr(self.target, "overloadpacket", self.target)).rpartition(".")[2]
        args = [_spell(arg) for arg in self.args] + [f"{key}={_spell(arg)}" for key, arg in self.kwargs.items()]
        picked = "" if self.output is None else f"[{self.output}]"
        return f"{op}({', '.join(args)}){picked}"


def evaluate_each(weights: Mapping[str, Weight]) -> Iterator[tuple[str, torch.Tensor]]:
    """The name and value of each of `weights`, in order. Outputs of one call that follow each other share it."""
    for _, group in groupby(weights.items(), key=lambda item: _whole(item[1]).digest):
        outputs: Any = None
        for name, weight in group:
            if not isinstance(weight, Expr) or weight.output is None:
                yield name, weight.evaluate()
                continue
            outputs = _whole(weight).evaluate() if outputs is None else outputs
            yield name, outputs[weight.output]


def bytes_of_each(weights: Mapping[str, Weight]) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """As `evaluate_each`; the values are the bytes of the tensors, [bytes], in the order of their elements."""
    for name, value in evaluate_each(weights):
        yield name, value.contiguous().reshape(-1).view(dtype=torch.uint8).numpy()


def _whole(weight: Weight) -> Weight:
    """The call that `weight` is an output of; itself when it is all that its recipe computes."""
    return replace(weight, output=None) if isinstance(weight, Expr) and weight.output is not None else weight


_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


def _map(value: Any, change: Callable[[Any], object]) -> Any:  # noqa: ANN401 - the arguments of any op
    """`value` with every recipe in it changed, and lists made tuples. Raises `InvalidGraph` for what is no constant."""
    if isinstance(value, Weight):
        return change(value)
    if isinstance(value, (list, tuple)):
        return tuple(_map(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, _PLAIN):
        return value
    kind = type(value).__name__
    raise InvalidGraph(f"weight expression: {kind} is no weight and no constant; use Constant for a tensor")


def _spell(value: object) -> str:
    if isinstance(value, Weight):
        return value.describe()
    if isinstance(value, tuple):
        return f"({', '.join(_spell(item) for item in value)})"
    return _dtype_name(value) if isinstance(value, torch.dtype) else repr(value)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest(*parts: object) -> str:
    # repr tells 1 from 1.0 and from True, which compare equal.
    return hashlib.sha256(repr(parts).encode()).hexdigest()
