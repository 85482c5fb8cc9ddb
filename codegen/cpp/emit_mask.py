"""Mask formulas as C++: what is visible, what is added, and which keys a query can see at all."""

import ast
from collections.abc import Sequence

from llmc.codegen.cpp.function import TYPES, Function
from llmc.codegen.formula_terms import extremes
from llmc.codegen.key_ranges import key_ranges
from llmc.codegen.layout import View

_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.BitAnd: "&&", ast.BitOr: "||"}
_CALLS = {"where": "mask::where", "minimum": "mask::minimum", "maximum": "mask::maximum", "abs": "mask::absolute",
          "exp": "std::exp", "log": "std::log", "floor": "std::floor", "sqrt": "std::sqrt"}  # fmt: skip
_SIGNATURE = "int64_t q, int64_t k, int h"


def emit_mask(function: Function, mask: str, bias: str, tables: Sequence[View], heads: int) -> None:
    """Add a local struct `Mask` and a value `mask` of it, over so many query heads, to a function."""
    names = []
    for number, table in enumerate(tables):
        kind = function.pointer(table.buffer)
        names.append((f"t{number}", kind, table))
    members = "".join(f" const {TYPES[view.buffer.dtype]}* {name};" for name, _, view in names)
    found = key_ranges(mask, heads)
    has_bias = bias != "0"
    lows, highs = [each.low for each in found.ranges], [each.high for each in found.ranges]
    whole = found.exact and len(found.ranges) == 1 and not has_bias
    tests = [f"k_lo >= {_extreme(low, 1)}" for low in lows if low is not None]
    tests += [f"k_hi <= {_extreme(high, 0)}" for high in highs if high is not None]
    function.add(
        "struct Mask {",
        f" {members}" if members else "  // no tables",
        f"  enum : bool {{ has_bias = {str(has_bias).lower()} }};",
        f"  bool visible({_SIGNATURE}) const {{ return {_text(ast.parse(mask, mode='eval').body, tables)}; }}",
        f"  float bias({_SIGNATURE}) const {{ return float({_text(ast.parse(bias, mode='eval').body, tables)}); }}",
        f"  int64_t first(int64_t q) const {{ return {_first(lows)}; }}",
        f"  int64_t last(int64_t q) const {{ return {_last(highs)}; }}",
        "  bool all(int64_t q_lo, int64_t q_hi, int64_t k_lo, int64_t k_hi) const"
        f" {{ return {' && '.join(tests) if whole and tests else str(whole).lower()}; }}",
        "};",
        f"const Mask mask{{{', '.join(f'{pointer} + {view.offset}' for _, pointer, view in names)}}};",
    )


def _first(lows: Sequence[str | None]) -> str:
    """The first key of ranges, where all begin somewhere."""
    begins = [_formula(low) for low in lows if low is not None]
    if len(begins) < len(lows):
        return "int64_t(0)"
    return _join("std::max", [_join("std::min", begins), "int64_t(0)"])


def _last(highs: Sequence[str | None]) -> str:
    """The last key of ranges, where all end somewhere."""
    ends = [_formula(high) for high in highs if high is not None]
    return "INT64_MAX" if len(ends) < len(highs) else _join("std::max", ends)


def _extreme(formula: str, which: int) -> str:
    """The least (0) or greatest (1) value of a formula where q is from q_lo to q_hi."""
    return _formula(extremes(formula, {"q": ("q_lo", "q_hi")})[which])


def _formula(formula: str) -> str:
    return _text(ast.parse(formula, mode="eval").body, ())


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
