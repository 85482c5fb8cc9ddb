"""Mask formulas as C++: what is visible, what is added, and which keys a query can see at all."""

import ast
from collections.abc import Sequence

from llmc.codegen.cpp.function import TYPES, Function
from llmc.codegen.layout import View
from llmc.codegen.mask_bounds import mask_bounds

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
    bounds = mask_bounds(mask)
    has_bias = bias != "0"
    whole = bounds.exact and not has_bias
    tests = [f"k_lo >= {_from('q_hi', -c)}" for c in bounds.before] + [
        f"k_hi <= {_from('q_lo', c)}" for c in bounds.after
    ]
    firsts, lasts = [_from("q", -c) for c in bounds.before], [_from("q", c) for c in bounds.after]
    function.add(
        "struct Mask {",
        f" {members}" if members else "  // no tables",
        f"  enum : bool {{ has_bias = {str(has_bias).lower()} }};",
        f"  bool visible({_SIGNATURE}) const {{ return {_text(ast.parse(mask, mode='eval').body, tables)}; }}",
        f"  float bias({_SIGNATURE}) const {{ return float({_text(ast.parse(bias, mode='eval').body, tables)}); }}",
        f"  int64_t first(int64_t q) const {{ return {_join('std::max', [*firsts, 'int64_t(0)'])}; }}",
        f"  int64_t last(int64_t q) const {{ return {_join('std::min', lasts) or 'INT64_MAX'}; }}",
        "  bool all(int64_t q_lo, int64_t q_hi, int64_t k_lo, int64_t k_hi) const"
        f" {{ return {' && '.join(tests) if whole and tests else str(whole).lower()}; }}",
        "};",
        f"const Mask mask{{{', '.join(f'{pointer} + {view.offset}' for _, pointer, view in names)}}};",
    )


def _from(query: str, distance: int) -> str:
    return f"({query} {'-' if distance < 0 else '+'} {abs(distance)})" if distance else query


def _join(function: str, parts: Sequence[str]) -> str:
    text = parts[0] if parts else ""
    for part in parts[1:]:
        text = f"{function}<int64_t>({text}, {part})"
    return text


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
