"""A graph as a program to read: what dumps, reports and tests print.

The text is Python: it defines `forward`, which runs when called with the weights and inputs. Sizes are letters, each
line ends with the type of its value and its origin. Equal graphs print equal text, in every process.
"""

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload

from llmc.ir.infer import leaves
from llmc.ir.model import Model, Origin
from llmc.ir.signature import parameters
from llmc.ir.tracing import aten
from llmc.ir.weights import Weight

DTYPES = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
    torch.float8_e4m3fn: "f8e4m3",
}  # fmt: skip
"""The short name of each dtype of the IR."""

_LETTERS = {
    "tokens": "T", "positions": "T", "slots": "T", "input_ids": "BS", "lengths": "B", "blocks": "BM", "rows": "R",
}  # fmt: skip
"""Letters of the sizes of inputs that are always called the same."""

_MORE_LETTERS = "SBNMLKPQUWXYZ"

_INFIX: dict[object, str] = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//"}

_HEADER = """from math import inf, nan

import torch

aten, llmc = torch.ops.aten, torch.ops.llmc
"""

_COLUMN = 72
"""Where comments begin, at least."""


def show(model: Model) -> str:
    """The model's graph as Python source: weights and inputs as parameters, one op a line."""
    return show_graph(model.graph, model.weights)


def show_graph(graph: fx.Graph, weights: Mapping[str, Weight] | None = None) -> str:
    """`graph` as Python source; the recipe of each of `weights` is shown beside its parameter."""
    letters = size_letters(graph)
    lines = [_HEADER, "", "def forward("]
    for node in graph.find_nodes(op="placeholder"):
        text = f'    {node.name}: "{type_text(node.meta.get("val"), letters)}",'
        recipe = (weights or {}).get(node.name)
        lines.append(_comment(text, "" if recipe is None else recipe.describe()))
    lines.append("):")
    for node in graph.nodes:
        if node.op == "output":
            lines.append(f"    return {_value(node.args[0])}")
        elif node.op != "placeholder":
            text = f"    {node.name} = {expression(node)}"
            lines.append(_comment(text, f"{type_text(node.meta.get('val'), letters)}  {_origin(node)}"))
    return "\n".join(lines) + "\n"


def expression(node: fx.Node) -> str:
    """The call of `node` as Python source, constants by name, defaults left out."""
    if node.target is operator.getitem:
        return f"{_value(node.args[0])}[{_value(node.args[1])}]"
    if node.target in _INFIX:
        return f"{_value(node.args[0])} {_INFIX[node.target]} {_value(node.args[1])}"
    if node.target is aten.sym_size.int:
        return f"{_value(node.args[0])}.shape[{_value(node.args[1])}]"
    if not isinstance(node.target, OpOverload):
        parts = [_value(arg) for arg in node.args] + [f"{name}={_value(arg)}" for name, arg in node.kwargs.items()]
        return f"{getattr(node.target, '__name__', node.target)}({', '.join(parts)})"
    known = "" if node.target.namespace in ("aten", "llmc") else "torch.ops."
    return f"{known}{op_text(node.target)}({', '.join(_arguments(node, node.target))})"


def op_text(target: OpOverload) -> str:
    """An op as `aten.mul`: the overload follows from the arguments."""
    return target._schema.name.replace("::", ".")


def type_text(val: object, letters: Mapping[sympy.Symbol, str] | None = None) -> str:
    """A value's type as text: `bf16[T, 2048]`, `(f32[4], i64[4])` for several values, the expression for a size.

    `letters` are the letters of the symbols; a symbol without one keeps its own name.
    """
    if isinstance(val, torch.Tensor):
        return f"{DTYPES.get(val.dtype, str(val.dtype))}[{', '.join(size_text(size, letters) for size in val.shape)}]"
    if isinstance(val, (list, tuple)):
        return f"({', '.join(type_text(item, letters) for item in val)})"
    return size_text(val, letters)


def size_text(size: object, letters: Mapping[sympy.Symbol, str] | None = None) -> str:
    """A size as text: a number, a letter, or an expression of letters."""
    if not isinstance(size, torch.SymInt):
        return str(size)
    expr = size.node.expr
    renamed = {symbol: sympy.Symbol(letter, integer=True) for symbol, letter in (letters or {}).items()}
    return str(expr.xreplace(renamed))


def size_letters(graph: fx.Graph) -> dict[sympy.Symbol, str]:
    """A letter for each symbol in the sizes of the inputs, the same for equal graphs."""
    found: dict[sympy.Symbol, str] = {}
    spare = iter([*_MORE_LETTERS, *(f"S{number}" for number in range(1, 1000))])
    nodes = graph.find_nodes(op="placeholder")
    for node in [node for node in nodes if node.name in _LETTERS] + [n for n in nodes if n.name not in _LETTERS]:
        wanted = _LETTERS.get(node.name, "")
        for place, symbol in _input_symbols(node):
            if symbol in found:
                continue
            letter = wanted[place] if place < len(wanted) else ""
            if not letter or letter in found.values():
                letter = next(spelled for spelled in spare if spelled not in found.values())
            found[symbol] = letter
    return found


def _input_symbols(node: fx.Node) -> Iterator[tuple[int, sympy.Symbol]]:
    for leaf in leaves(node.meta.get("val")):
        for place, size in enumerate(leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,)):
            if isinstance(size, torch.SymInt):
                for symbol in sorted(size.node.expr.free_symbols, key=str):
                    yield place, symbol


def _arguments(node: fx.Node, target: OpOverload) -> Iterator[str]:
    """The first two arguments and values by position, from the first other constant on by name."""
    by_position = True
    given = dict(zip((name for name, _, _ in parameters(target)), node.args, strict=False)) | dict(node.kwargs)
    keyword_only = {argument.name for argument in target._schema.arguments if argument.kwarg_only}
    for place, (name, has_default, default) in enumerate(parameters(target)):
        if name not in given:
            by_position = False
            continue
        value = given[name]
        if place >= 2 and has_default and type(value) is type(default) and value == default:
            by_position = False
            continue
        holds_node = any(isinstance(leaf, fx.Node) for leaf in leaves(value))
        by_position = by_position and name not in keyword_only and (place < 2 or holds_node)
        yield _value(value) if by_position else f"{name}={_value(value)}"


def _value(value: Any) -> str:  # noqa: ANN401 - any argument of a node
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, tuple):
        return f"({', '.join(_value(item) for item in value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, (torch.device, str)):
        return repr(str(value))
    return str(value) if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)) else repr(value)


def _origin(node: fx.Node) -> str:
    origin = node.meta.get("origin")
    return str(origin) if isinstance(origin, Origin) and origin != Origin() else ""


def _comment(text: str, comment: str) -> str:
    return f"{text:<{_COLUMN}}  # {comment}".rstrip() if comment.strip() else text
