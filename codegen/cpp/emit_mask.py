"""Mask formulas as C++: what is visible, what is added, and which keys a query can see at all.

The bounds let kernels skip whole blocks of keys. They are read off the conjuncts that are understood (`k <= q + c`,
`q - k < w`); any other conjunct only costs the skipping, not the result.
"""

import ast
from collections.abc import Sequence

from llmc.codegen.cpp.function import TYPES, Function
from llmc.codegen.layout import View

_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.BitAnd: "&&", ast.BitOr: "||"}
_CALLS = {"where": "mask::where", "minimum": "mask::minimum", "maximum": "mask::maximum", "abs": "mask::absolute",
          "exp": "std::exp", "log": "std::log", "floor": "std::floor", "sqrt": "std::sqrt"}  # fmt: skip
_SIGNATURE = "int64_t q, int64_t k, int h"


def emit_mask(function: Function, mask: str, bias: str, tables: Sequence[View]) -> None:
    """Add a local struct `Mask` and a value `mask` of it to a function."""
    names = []
    for number, table in enumerate(tables):
        kind = function.pointer(table.buffer)
        names.append((f"t{number}", kind, table))
    members = "".join(f" const {TYPES[view.buffer.dtype]}* {name};" for name, _, view in names)
    spans = _spans(mask)
    has_bias = bias != "0"
    lasts = [span for kind, span in spans if kind == "last"]
    firsts = [span for kind, span in spans if kind == "first"]
    whole = len(spans) == _conjuncts(mask) and not has_bias
    corners = [text.replace("Q", "q_lo" if kind == "last" else "q_hi") for kind, text in spans]
    tests = [
        f"k_hi <= {corner}" if kind == "last" else f"k_lo >= {corner}"
        for (kind, _), corner in zip(spans, corners, strict=True)
    ]
    function.add(
        "struct Mask {",
        f" {members}" if members else "  // no tables",
        f"  enum : bool {{ has_bias = {str(has_bias).lower()} }};",
        f"  bool visible({_SIGNATURE}) const {{ return {_text(ast.parse(mask, mode='eval').body, tables)}; }}",
        f"  float bias({_SIGNATURE}) const {{ return float({_text(ast.parse(bias, mode='eval').body, tables)}); }}",
        f"  int64_t first(int64_t q) const {{ return {_join('std::max', [*_at(firsts), 'int64_t(0)'])}; }}",
        f"  int64_t last(int64_t q) const {{ return {_join('std::min', _at(lasts)) or 'INT64_MAX'}; }}",
        "  bool all(int64_t q_lo, int64_t q_hi, int64_t k_lo, int64_t k_hi) const"
        f" {{ return {' && '.join(tests) if whole and tests else str(whole).lower()}; }}",
        "};",
        f"const Mask mask{{{', '.join(f'{pointer} + {view.offset}' for _, pointer, view in names)}}};",
    )


def _at(spans: Sequence[str]) -> list[str]:
    return [span.replace("Q", "q") for span in spans]


def _join(function: str, parts: Sequence[str]) -> str:
    text = parts[0] if parts else ""
    for part in parts[1:]:
        text = f"{function}<int64_t>({text}, {part})"
    return text


def _parts(mask: str) -> list[ast.expr]:
    """The conjuncts of a predicate."""
    stack, found = [ast.parse(mask, mode="eval").body], []
    while stack:
        node = stack.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
            stack += [node.right, node.left]
        else:
            found.append(node)
    return found


def _conjuncts(mask: str) -> int:
    return len([part for part in _parts(mask) if ast.unparse(part) != "True"])


def _spans(mask: str) -> list[tuple[str, str]]:
    """Bounds on k as ("last" or "first", C++ in Q), one for each conjunct that is understood."""
    spans = []
    for part in _parts(mask):
        if not (isinstance(part, ast.Compare) and len(part.ops) == 1):
            continue
        left, right = ast.unparse(part.left), ast.unparse(part.comparators[0])
        if left == "k" and isinstance(part.ops[0], ast.LtE) and right == "q":
            spans.append(("last", "Q"))
        elif left == "k" and isinstance(part.ops[0], ast.LtE) and right.startswith("q ") and right[4:].isdecimal():
            spans.append(("last", f"(Q {right[2:]})"))
        elif left == "q - k" and isinstance(part.ops[0], ast.Lt) and right.isdecimal():
            spans.append(("first", f"(Q - {int(right) - 1})"))
    return spans


def _text(node: ast.expr, tables: Sequence[View]) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=bool(value)):
            return "true" if value else "false"
        case ast.Constant(value=int(value)):
            return f"int64_t({value})"
        case ast.Constant(value=value):
            return f"{value!r}f"
        case ast.BinOp(left, ast.FloorDiv(), right):
            return f"mask::floor_div({_text(left, tables)}, {_text(right, tables)})"
        case ast.BinOp(left, ast.Mod(), right):
            return f"mask::modulo({_text(left, tables)}, {_text(right, tables)})"
        case ast.BinOp(left, ast.Pow(), right):
            return f"std::pow(float({_text(left, tables)}), float({_text(right, tables)}))"
        case ast.BinOp(left, ast.Div(), right):
            return f"(float({_text(left, tables)}) / float({_text(right, tables)}))"
        case ast.BinOp(left, op, right):
            return f"({_text(left, tables)} {_BINARY[type(op)]} {_text(right, tables)})"
        case ast.UnaryOp(ast.USub(), operand):
            return f"(-{_text(operand, tables)})"
        case ast.UnaryOp(_, operand):
            return f"(!{_text(operand, tables)})"
        case ast.Compare(left, [op], [right]):
            return f"({_text(left, tables)} {_COMPARE[type(op)]} {_text(right, tables)})"
        case ast.Call(ast.Name(id=name), args, _):
            return f"{_CALLS[name]}({', '.join(_text(arg, tables) for arg in args)})"
        case ast.Subscript(ast.Name(id=name), index):
            parts = index.elts if isinstance(index, ast.Tuple) else [index]
            view = tables[int(name[1:])]
            terms = [
                f"int64_t({_text(part, tables)}) * {axis.stride}" for part, axis in zip(parts, view.axes, strict=True)
            ]
            element = f"{name}[{' + '.join(terms)}]"
            return f"to_float({element})" if view.buffer.dtype in ("f16", "bf16") else element
        case _:
            raise ValueError(f"mask formula holds {ast.unparse(node)}")
