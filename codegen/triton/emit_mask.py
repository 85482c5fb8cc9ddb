"""Mask and bias formulas as Triton: expressions over tensors of query positions, key positions and heads.

Positions enter as int64 [rows, 1] `q`, [1, keys] `k`, and heads as [rows, 1] `h`. A table is read within its ends,
whatever the formula asks of keys that are not there.
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmc.codegen.formula_terms import magnitude, value_of
from llmc.codegen.key_ranges import FAR
from llmc.codegen.layout import View
from llmc.codegen.triton.kernel import KernelText, offset

Kind = Literal["bool", "int", "float"]

_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^"}
_KINDS: dict[str, Kind] = {"u8": "bool", "i64": "int", "i8": "int"}


@dataclass
class Formula:
    """Turns formulas into expressions of one kernel."""

    kernel: KernelText
    tables: Sequence[View]
    before: list[str] = field(default_factory=list)
    """Lines to come before the loop over keys: reads of tables that do not depend on the key."""

    def predicate(self, text: str) -> str:
        """A bool expression."""
        return self._text(ast.parse(text, mode="eval").body)[0]

    def number(self, text: str) -> str:
        """An fp32 expression, or a number."""
        return self._real(ast.parse(text, mode="eval").body)

    def _real(self, node: ast.expr) -> str:
        text, kind = self._text(node)
        named = any(isinstance(part, ast.Name) for part in ast.walk(node))
        if kind == "int" and named and (short := _short(node)):
            return f"({short[0]}).to(tl.float32)"
        return text if kind == "float" else f"({text} + 0.0)"

    def _text(self, node: ast.expr) -> tuple[str, Kind]:
        match node:
            case ast.Name(id=name):
                return name, "int"
            case ast.Constant(value=bool(value)):
                return str(value), "bool"
            case ast.Constant(value=int(value)):
                return str(value), "int"
            case ast.Constant(value=value):
                return repr(value), "float"
            case ast.BinOp(left, op, right):
                return self._binary(left, op, right)
            case ast.UnaryOp(ast.USub(), operand):
                text, kind = self._text(operand)
                return f"(-{text})", kind
            case ast.UnaryOp(_, operand):
                return f"(~{self._text(operand)[0]})", "bool"
            case ast.Compare(left, [op], [right]):
                return f"({self._text(left)[0]} {_COMPARE[type(op)]} {self._text(right)[0]})", "bool"
            case ast.Call(ast.Name(id=name), args, _):
                return self._call(name, args)
            case ast.Subscript(ast.Name(id=name), index):
                return self._read(int(name[1:]), index.elts if isinstance(index, ast.Tuple) else [index])
            case _:
                raise ValueError(f"mask formula holds {ast.unparse(node)}")

    def _binary(self, left: ast.expr, op: ast.operator, right: ast.expr) -> tuple[str, Kind]:
        (a, first), (b, second) = self._text(left), self._text(right)
        kind: Kind = "float" if "float" in (first, second) else first
        if kind == "float":
            a, b = (a if first == "float" else self._real(left)), (b if second == "float" else self._real(right))
        if isinstance(op, ast.Div):
            return f"({self._real(left)} / {self._real(right)})", "float"
        if isinstance(op, ast.FloorDiv | ast.Mod) and kind == "int" and (size := value_of(right) or 0) > 0:
            if size & (size - 1) == 0:
                return (
                    f"({a} >> {size.bit_length() - 1})" if isinstance(op, ast.FloorDiv) else f"({a} & {size - 1})"
                ), kind
            quotient = f"{self.kernel.call('visible_keys', 'floor_by')}({a}, {size})"
            return (quotient if isinstance(op, ast.FloorDiv) else f"({a} - {quotient} * {size})"), kind
        if isinstance(op, ast.FloorDiv | ast.Mod):
            name = "floor_divide" if isinstance(op, ast.FloorDiv) else "modulo"
            return f"{self._library(name, kind)}({a}, {b})", kind
        if isinstance(op, ast.Pow):
            if (
                kind == "int"
                and isinstance(right, ast.Constant)
                and isinstance(right.value, int)
                and 0 < right.value < 4
            ):
                return f"({' * '.join([a] * right.value)})", "int"
            return f"{self.kernel.call('formulas', 'power')}({self._real(left)}, {self._real(right)})", "float"
        return f"({a} {_BINARY[type(op)]} {b})", kind

    def _library(self, name: str, kind: Kind) -> str:
        return self.kernel.call("formulas", f"{name}_real" if kind == "float" else name)

    def _call(self, name: str, args: Sequence[ast.expr]) -> tuple[str, Kind]:
        texts, kinds = zip(*(self._text(arg) for arg in args), strict=True)
        kind: Kind = "float" if "float" in kinds else kinds[-1]
        if name in ("where", "minimum", "maximum"):
            return f"tl.{name}({', '.join(texts)})", kind
        if name in ("exp", "log", "sqrt"):
            return f"tl.{name}({self._real(args[0])})", "float"
        if name == "floor":
            return (f"tl.floor({texts[0]})" if kind == "float" else texts[0]), kind
        return f"tl.{name}({texts[0]})", kind

    def _read(self, number: int, index: Sequence[ast.expr]) -> tuple[str, Kind]:
        view = self.tables[number]
        kind: Kind = _KINDS.get(view.buffer.dtype, "float")
        pointer = self.kernel.pointer(view.buffer, f"t{number}")
        indices = [f"({self._text(part)[0]})" for part in index]
        inside = " & ".join(
            f"({text} >= 0) & ({text} < {axis.size})"
            for part, text, axis in zip(index, indices, view.axes, strict=True)
            if not isinstance(part, ast.Constant)
        )
        guard = f", mask={inside}, other=0" if inside else ""
        text = f"tl.load({pointer} + ({offset(view, '0', indices)}){guard})"
        text += {"bool": " != 0", "int": "", "float": ".to(tl.float32)"}[kind]
        names = {name.id for part in index for name in ast.walk(part) if isinstance(name, ast.Name)}
        if "k" in names or not names & {"q", "h"}:
            return f"({text})", kind
        line = next((line for line in self.before if line.endswith(f" = {text}")), None)
        if line is None:
            line = f"entry_{len(self.before)} = {text}"
            self.before.append(line)
        return line.partition(" ")[0], kind


def position_type(*formulas: str) -> str:
    """The type of positions and heads in formulas: one of 32 bits where there is room for all that is made of them."""
    most = dict.fromkeys("qkh", FAR - 1)
    narrow = all(magnitude(formula, most) < 1 << 31 for formula in formulas)
    tables = any(isinstance(node, ast.Subscript) for formula in formulas for node in ast.walk(ast.parse(formula)))
    return "tl.int32" if narrow and not tables else "tl.int64"


def _short(node: ast.expr) -> tuple[str, int, int] | None:
    """A sum of positions, heads and constants in 32 bits, and its least and greatest value, where there is room.

    A GPU makes a float of 32 bits in one instruction, of 64 in many. Positions are less than 2^30.
    """
    match node:
        case ast.Name(id=name):
            return f"{name}.to(tl.int32)", 0, (1 << 30) - 1
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return str(value), value, value
        case ast.BinOp(left, ast.Add() | ast.Sub() as op, right):
            (a, b), sign = (_short(left), _short(right)), 1 if isinstance(op, ast.Add) else -1
            if a is None or b is None:
                return None
            ends = sorted((sign * b[1], sign * b[2]))
            least, greatest = a[1] + ends[0], a[2] + ends[1]
            fits = least >= -(1 << 31) and greatest < 1 << 31
            return (f"({a[0]} {_BINARY[type(op)]} {b[0]})", least, greatest) if fits else None
        case _:
            return None
