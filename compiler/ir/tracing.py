"""Python functions to graphs: how patterns and replacements are written.

A traced function is called on `Value`s. It may call `torch.ops.aten.*` and `torch.ops.llmc.*` overloads, and it may
use operators, methods and torch functions of the same names (`x * w`, `x.float()`, `torch.rsqrt(x)`, `F.silu(x)`,
`x[..., :n]`): both become the spelling of the tidied graph, which `SPELLINGS` lists. Anything else is refused by name,
so nothing is traced into a form that no rule would recognise. `Tensor.Scalar` overloads are not used: a number is the
second operand of `aten.mul.Tensor`, as in exported graphs.

When the inputs have values (replacements), every new node gets its fake tensor at once, so `x.shape` and `x.dtype` are
known, symbolic sizes becoming `aten.sym_size.int` nodes, and negative dimensions are counted from the front. In
patterns they are not known.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from llmc.errors import InvalidGraph
from llmc.ir.infer import infer
from llmc.ir.signature import by_name, from_front, rank_of_input

aten = torch.ops.aten


class Value:
    """A value while tracing: stands for a tensor, a size, or a tuple of them."""

    def __init__(self, tracer: "Tracer", node: fx.Node) -> None:
        """Wrap `node` of the graph that `tracer` builds."""
        self.tracer = tracer
        self.node = node

    @property
    def val(self) -> Any:  # noqa: ANN401 - a fake tensor, a size, or a tuple of them
        """The fake tensor or symbolic size. Raises `InvalidGraph` in a pattern, where none is known."""
        if "val" not in self.node.meta:
            raise InvalidGraph(f"{self.node.name}: shape and dtype are not known in a pattern; test them in `unless`")
        return self.node.meta["val"]

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the tensor."""
        return torch.as_tensor(self.val).dtype if not isinstance(self.val, torch.Tensor) else self.val.dtype

    @property
    def ndim(self) -> int:
        """Rank of the tensor."""
        return int(self.val.dim())

    @property
    def shape(self) -> list[Any]:
        """Sizes of the tensor: an int, or the value of an `aten.sym_size.int` node where symbolic."""
        sizes = enumerate(self.val.shape)
        return [size if isinstance(size, int) else self.tracer.call(aten.sym_size.int, self, d) for d, size in sizes]

    @property
    def is_size(self) -> bool:
        """Whether this is a symbolic size rather than a tensor."""
        return isinstance(self.node.meta.get("val"), (torch.SymInt, int))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        """Say what is wrong when a torch function meets a value outside a trace."""
        raise InvalidGraph(f"{func}: called on a traced value outside of its trace")

    def __getattr__(self, name: str) -> Callable[..., "Value"]:
        if name.startswith("_") or name not in SPELLINGS:
            raise AttributeError(f"a traced value has no {name!r}; use a torch.ops.aten overload, or one of {_known()}")
        return lambda *args, **kwargs: SPELLINGS[name](self, *args, **kwargs)

    def __add__(self, other: Any) -> "Value":  # noqa: ANN401
        return _binary(aten.add.Tensor, operator.add, self, other)

    def __radd__(self, other: Any) -> "Value":  # noqa: ANN401
        return _binary(aten.add.Tensor, operator.add, self, other)

    def __mul__(self, other: Any) -> "Value":  # noqa: ANN401
        return _binary(aten.mul.Tensor, operator.mul, self, other)

    def __rmul__(self, other: Any) -> "Value":  # noqa: ANN401
        return _binary(aten.mul.Tensor, operator.mul, self, other)

    def __sub__(self, other: Any) -> "Value":  # noqa: ANN401
        return _binary(aten.sub.Tensor, operator.sub, self, other)

    def __rsub__(self, other: Any) -> "Value":  # noqa: ANN401
        if self.is_size:
            return self.tracer.call(operator.sub, other, self)
        return self.tracer.call(aten.rsub.Scalar, self, other)

    def __truediv__(self, other: Any) -> "Value":  # noqa: ANN401
        return self.tracer.call(aten.div.Tensor, self, other)

    def __floordiv__(self, other: Any) -> "Value":  # noqa: ANN401
        return self.tracer.call(operator.floordiv, self, other)

    def __neg__(self) -> "Value":
        return self.tracer.call(aten.neg.default, self)

    def __pow__(self, exponent: Any) -> "Value":  # noqa: ANN401
        return _pow(self, exponent)

    def __matmul__(self, other: "Value") -> "Value":
        return self.tracer.call(aten.matmul.default, self, other)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        return _getitem(self, index)

    def __iter__(self) -> Iterator["Value"]:
        if not isinstance(self.val, (list, tuple)):
            raise InvalidGraph(f"{self.node.name}: only the result of an op with several outputs can be unpacked")
        return iter([self[position] for position in range(len(self.val))])


class Tracer(TorchFunctionMode):
    """Builds a graph from the calls that a function makes on values while this mode is active."""

    def __init__(self, mode: FakeTensorMode | None) -> None:
        """Infer the value of each node under `mode`; not at all when it is None (patterns)."""
        super().__init__()
        self.graph = fx.Graph()
        self.mode = mode

    def placeholder(self, name: str, val: object = None) -> Value:
        """A new input of the graph; `val` is its fake tensor or size."""
        node = self.graph.placeholder(name)
        if self.mode is not None:
            node.meta["val"] = val
        return Value(self, node)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:  # noqa: ANN401
        """Append a call of `target`, an op overload or a function of `operator`."""
        nodes, named = _unwrap(list(args)), {key: _unwrap(value) for key, value in kwargs.items()}
        if self.mode is not None and isinstance(target, OpOverload):
            nodes, named = _positive(target, nodes, named)
        node = self.graph.create_node("call_function", target, tuple(nodes), named, name=short_name(target))
        if self.mode is not None:
            try:
                node.meta["val"] = infer(self.mode, target, node.args, node.kwargs)
            except Exception as error:
                raise InvalidGraph(f"{short_name(target)}: cannot be applied here: {error}") from error
        return Value(self, node)

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Turn a call of a torch function or op into a node; calls on no value at all run as usual."""
        kwargs = kwargs or {}
        if not any(isinstance(value, Value) for value in _flatten((list(args), list(kwargs.values())))):
            return func(*args, **kwargs) if not isinstance(func, OpOverload) else self.call(func, *args, **kwargs)
        if isinstance(func, OpOverloadPacket):
            names = func.overloads()
            func = getattr(func, "default" if "default" in names else "Tensor" if "Tensor" in names else names[0])
        if isinstance(func, OpOverload):
            return self.call(func, *args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name not in SPELLINGS:
            raise InvalidGraph(f"torch.{name}: not traced; use a torch.ops.aten overload, or one of {_known()}")
        return SPELLINGS[name](*args, **kwargs)


def trace(
    function: Callable[..., Any], inputs: Mapping[str, object], mode: FakeTensorMode | None
) -> tuple[fx.Graph, list[Value]]:
    """Trace `function` on one value for each of `inputs`, passed by position; return the graph and its outputs.

    The graph has one placeholder per input and returns a tuple. `mode` is None for a pattern.
    Raises `InvalidGraph` when the function uses something that has no spelling here or returns no values.
    """
    tracer = Tracer(mode)
    values = [tracer.placeholder(name, val) for name, val in inputs.items()]
    with tracer:
        result = function(*values)
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    if not outputs or not all(isinstance(value, Value) and value.tracer is tracer for value in outputs):
        raise InvalidGraph(f"{getattr(function, '__name__', function)}: returned {result!r}; expected traced values")
    tracer.graph.output(tuple(value.node for value in outputs))
    return tracer.graph, outputs


def short_name(target: object) -> str:
    """The op's own name, without namespace and overload: `rms_norm` for `llmc.rms_norm.default`."""
    if isinstance(target, OpOverload):
        return target._schema.name.partition("::")[2].lstrip("_")
    return str(getattr(target, "__name__", target))


def _unwrap(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Value):
        return value.node
    if isinstance(value, (list, tuple)):
        return [_unwrap(item) for item in value]
    return value


def _flatten(value: object) -> Iterator[object]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


def _positive(target: OpOverload, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    named = by_name(target, args, kwargs)
    forward = from_front(target, named, rank_of_input(named))
    names = [argument.name for argument in target._schema.arguments]
    return [forward[name] for name in names[: len(args)]], {name: forward[name] for name in kwargs}


def _known() -> str:
    return ", ".join(sorted(SPELLINGS))


def _binary(tensor_op: OpOverload, size_op: Callable[..., Any], x: Any, y: Any) -> Value:  # noqa: ANN401
    if not isinstance(x, Value):
        x, y = y, x
    sizes = x.is_size and (isinstance(y, int) or (isinstance(y, Value) and y.is_size))
    call: Value = x.tracer.call(size_op if sizes else tensor_op, x, y)
    return call


def _sub(x: Any, y: Any) -> Value:  # noqa: ANN401
    result: Value = x - y
    return result


def _pow(x: Value, exponent: Any) -> Value:  # noqa: ANN401
    if isinstance(exponent, (int, float)) and exponent == 2:
        return x * x
    if isinstance(exponent, Value) and not exponent.is_size and "val" in exponent.node.meta:
        return x.tracer.call(aten.pow.Tensor_Tensor, x, exponent)
    return x.tracer.call(aten.pow.Tensor_Scalar, x, exponent)


def _unary(op: OpOverload) -> Callable[[Value], Value]:
    return lambda x, **_: x.tracer.call(op, x)


def _cast(dtype: torch.dtype) -> Callable[[Value], Value]:
    return lambda x: x.tracer.call(aten._to_copy.default, x, dtype=dtype)


def _to(x: Value, dtype: torch.dtype | Value) -> Value:
    if isinstance(dtype, Value) and isinstance(dtype.node.meta.get("val"), torch.Tensor):
        dtype = dtype.dtype
    return x.tracer.call(aten._to_copy.default, x, dtype=dtype)


def _shape(sizes: tuple[Any, ...]) -> list[Any]:
    return list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)) else list(sizes)


def _mean(x: Value, dim: Any, keepdim: bool = False) -> Value:  # noqa: ANN401
    return x.tracer.call(aten.mean.dim, x, _shape((dim,)), keepdim)


def _sum(x: Value, dim: Any, keepdim: bool = False) -> Value:  # noqa: ANN401
    return x.tracer.call(aten.sum.dim_IntList, x, _shape((dim,)), keepdim)


def _softmax(x: Value, dim: int, dtype: torch.dtype | None = None, **_: object) -> Value:
    return x.tracer.call(aten.softmax.int, x, dim, *(() if dtype is None else (dtype,)))


def _linear(x: Value, weight: Value, bias: Value | None = None) -> Value:
    return x.tracer.call(aten.linear.default, x, weight, *(() if bias is None else (bias,)))


def _gelu(x: Value, approximate: str = "none") -> Value:
    return x.tracer.call(aten.gelu.default, x, **({} if approximate == "none" else {"approximate": approximate}))


def _cat(values: Sequence[Value], dim: int = 0) -> Value:
    return values[0].tracer.call(aten.cat.default, list(values), dim)


def _stack(values: Sequence[Value], dim: int = 0) -> Value:
    return values[0].tracer.call(aten.stack.default, list(values), dim)


def _split(x: Value, sizes: Sequence[Any], dim: int = 0) -> Value:
    return x.tracer.call(aten.split_with_sizes.default, x, list(sizes), dim)


def _transpose(x: Value, first: int, second: int) -> Value:
    order = list(range(x.ndim))
    order[first], order[second] = order[second], order[first]
    return x.tracer.call(aten.permute.default, x, order)


def _where(condition: Value, x: Any, y: Any) -> Value:  # noqa: ANN401
    return condition.tracer.call(aten.where.self, condition, x, y)


def _getitem(x: Value, index: Any) -> Any:  # noqa: ANN401
    target = x.node.target
    many = isinstance(target, OpOverload) and (
        len(target._schema.returns) > 1 or str(target._schema.returns[0].type).startswith("List")
    )
    if many:
        return x.tracer.call(operator.getitem, x, index)
    parts = list(index) if isinstance(index, tuple) else [index]
    after = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    for place, part in enumerate(parts):
        if part is Ellipsis or part == slice(None):
            continue
        dim = place if place < after else place - len(parts)
        if isinstance(part, slice) and part.step is None:
            stop = torch.iinfo(torch.int64).max if part.stop is None else part.stop
            x = x.tracer.call(aten.slice.Tensor, x, dim, part.start or 0, stop)
        elif isinstance(part, int) and len(parts) == 1:
            x = x.tracer.call(aten.select.int, x, dim, part)
        else:
            raise InvalidGraph(f"index {part!r}: not traced; use slices without a step, or torch.ops.aten overloads")
    return x


SPELLINGS: dict[str, Callable[..., Any]] = {
    **{
        name: _unary(getattr(aten, name).default)
        for name in (
            "abs", "cos", "erf", "exp", "log", "neg", "reciprocal", "relu", "rsqrt", "sigmoid", "silu", "sin", "sqrt",
            "tanh", "bitwise_not", "logical_not",
        )
    },
    "add": lambda x, y: x + y if isinstance(x, Value) else y + x,
    "sub": _sub,
    "mul": lambda x, y: x * y if isinstance(x, Value) else y * x,
    "div": lambda x, y: x / y,
    "pow": _pow,
    "square": lambda x: x * x,
    "matmul": lambda x, y: x @ y,
    "float": _cast(torch.float32),
    "double": _cast(torch.float64),
    "half": _cast(torch.float16),
    "bfloat16": _cast(torch.bfloat16),
    "to": _to,
    "reshape": lambda x, *sizes: x.tracer.call(aten.reshape.default, x, _shape(sizes)),
    "view": lambda x, *sizes: x.tracer.call(aten.reshape.default, x, _shape(sizes)),
    "expand": lambda x, *sizes: x.tracer.call(aten.expand.default, x, _shape(sizes)),
    "permute": lambda x, *dims: x.tracer.call(aten.permute.default, x, _shape(dims)),
    "transpose": _transpose,
    "unsqueeze": lambda x, dim: x.tracer.call(aten.unsqueeze.default, x, dim),
    "mean": _mean,
    "sum": _sum,
    "softmax": _softmax,
    "linear": _linear,
    "gelu": _gelu,
    "cat": _cat,
    "stack": _stack,
    "split": _split,
    "split_with_sizes": _split,
    "where": _where,
    "embedding": lambda ids, weight: ids.tracer.call(aten.embedding.default, weight, ids),
}  # fmt: skip
"""What an operator, method or torch function of that name becomes."""
