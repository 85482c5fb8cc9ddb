"""Attention masks and biases as formulas over positions, not as tensors.

A mask is a predicate, a bias a number, in `q` (position of the query in its sequence), `k` (position of the key),
`h` (query head) and tables `t0[...]`, `t1[...]` (small tensors given beside the formula). The text is a small part of
Python's expression grammar, parsed here and never evaluated as code: `(k <= q) & (q - k < 4096)`, `t0[h] * k`.
"""

import ast
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import sympy
import torch
from sympy.core.relational import Relational
from torch import Tensor

from llmc.errors import InvalidGraph

QUERY = sympy.Symbol("q", integer=True, nonnegative=True)
KEY = sympy.Symbol("k", integer=True, nonnegative=True)
HEAD = sympy.Symbol("h", integer=True, nonnegative=True)
LENGTH = sympy.Symbol("S", integer=True, positive=True)
"""Tokens of a whole sequence; a lifted formula no longer depends on it."""

TRUE = "True"

Grid = dict[str, Tensor]

_BINARY: dict[type[ast.operator], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
    ast.Div: torch.true_divide,
    ast.FloorDiv: torch.floor_divide,
    ast.Mod: torch.remainder,
    ast.Pow: torch.pow,
    ast.BitAnd: torch.logical_and,
    ast.BitOr: torch.logical_or,
    ast.BitXor: torch.logical_xor,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Lt: torch.lt,
    ast.LtE: torch.le,
    ast.Gt: torch.gt,
    ast.GtE: torch.ge,
    ast.Eq: torch.eq,
    ast.NotEq: torch.ne,
}
_FUNCTIONS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "where": (3, torch.where),
    "minimum": (2, torch.minimum),
    "maximum": (2, torch.maximum),
    "abs": (1, torch.abs),
    "floor": (1, torch.floor),
    "log": (1, torch.log),
    "exp": (1, torch.exp),
    "sqrt": (1, torch.sqrt),
}
"""Each function of the grammar: how many arguments it takes, and what it does."""

_REAL = ("log", "exp", "sqrt")
"""Functions whose result is no integer, whatever they are given."""

_LOGIC = (ast.BitAnd, ast.BitOr, ast.BitXor)

Kind = Literal["predicate", "number", "either"]
"""What a formula gives; a table may hold either."""


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[ast.expr, Kind]:
    if len(text) > 4096:
        raise InvalidGraph(f"mask formula of {len(text)} characters; expected at most 4096")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidGraph(f"mask formula {text[:80]!r} is no expression: {error}") from error
    return tree, _kind(tree, text)


def _kind(node: ast.expr, text: str, depth: int = 0) -> Kind:
    """What a formula gives. Raises `InvalidGraph` where it leaves the grammar, or mixes predicates and numbers."""
    if depth > 64:
        raise InvalidGraph(f"mask formula {text[:80]!r} is nested too deeply; expected at most 64 levels")

    def needs(wanted: Kind, *parts: ast.expr) -> None:
        for part in parts:
            if _kind(part, text, depth + 1) not in (wanted, "either"):
                raise InvalidGraph(f"mask formula {text[:80]!r} holds {ast.unparse(part)[:40]!r}; expected a {wanted}")

    match node:
        case ast.Constant(value=bool()):
            return "predicate"
        case ast.Name(id="q" | "k" | "h") | ast.Constant(value=float()):
            return "number"
        case ast.Constant(value=int(value)) if value < 1 << 63:
            return "number"
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            kind: Kind = "predicate" if isinstance(op, _LOGIC) else "number"
            needs(kind, left, right)
            return kind
        case ast.UnaryOp(ast.USub(), operand):
            needs("number", operand)
            return "number"
        case ast.UnaryOp(ast.Invert(), operand):
            needs("predicate", operand)
            return "predicate"
        case ast.Compare(left, [op], [right]) if type(op) in _COMPARE:
            needs("number", left, right)
            return "predicate"
        case ast.Call(ast.Name(id="where"), [condition, then, other], []):
            needs("predicate", condition)
            kind = _kind(then, text, depth + 1)
            if kind == "either":
                return _kind(other, text, depth + 1)
            needs(kind, other)
            return kind
        case ast.Call(ast.Name(id=name), args, []) if name in _FUNCTIONS and len(args) == _FUNCTIONS[name][0] < 3:
            needs("number", *args)
            return "number"
        case ast.Subscript(ast.Name(id=name), index) if _is_table(name):
            needs("number", *_parts(index))
            return "either"
    raise InvalidGraph(
        f"mask formula {text[:80]!r} holds {ast.unparse(node)[:40]!r}; expected arithmetic and comparisons of "
        "q, k, h and tables t0, t1, ..."
    )


def _is_table(name: str) -> bool:
    return name[:1] == "t" and name[1:].isdecimal() and name.isascii() and len(name) < 8


def _parts(index: ast.expr) -> Sequence[ast.expr]:
    return index.elts if isinstance(index, ast.Tuple) else (index,)


def validate(text: str, kind: Kind = "either") -> None:
    """Raise `InvalidGraph` unless `text` is a formula of the grammar that gives what `kind` says."""
    found = _parsed(text)[1]
    if kind != found and "either" not in (kind, found):
        raise InvalidGraph(f"mask formula {text[:80]!r} is a {found}; expected a {kind}")


def evaluate(text: str, q: Tensor, k: Tensor, h: Tensor, tables: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The value of a formula for positions and heads that broadcast against each other.

    Numbers that are not integers, such as a table's, are computed in `dtype`; a predicate gives a bool tensor.

    Raises:
        InvalidGraph: the text leaves the grammar, or names a table that is not given.
    """
    grid: Grid = {"q": q, "k": k, "h": h}

    def real(node: ast.expr) -> Tensor:
        return value(node).to(dtype)

    def value(node: ast.expr) -> Tensor:
        match node:
            case ast.Name(id=name):
                return grid[name]
            case ast.Constant(value=number):
                kind = dtype if isinstance(number, float) else None
                return torch.tensor(number, dtype=kind, device=q.device)
            case ast.BinOp(left, op, right):
                wide = isinstance(op, ast.Div)  # of integers torch would make float32
                return _BINARY[type(op)](real(left) if wide else value(left), real(right) if wide else value(right))
            case ast.UnaryOp(ast.USub(), operand):
                return -value(operand)
            case ast.UnaryOp(_, operand):
                return ~value(operand)
            case ast.Compare(left, [op], [right]):
                return _COMPARE[type(op)](value(left), value(right))
            case ast.Call(ast.Name(id=name), args, _):
                return _FUNCTIONS[name][1](*(real(arg) if name in _REAL else value(arg) for arg in args))
            case ast.Subscript(ast.Name(id=name), index) if int(name[1:]) < len(tables):
                table = tables[int(name[1:])]
                read = table[tuple(torch.broadcast_tensors(*(value(part).long() for part in _parts(index))))]
                return read.to(dtype) if read.is_floating_point() else read
        raise InvalidGraph(
            f"mask formula {text[:80]!r} holds {ast.unparse(node)[:40]!r}; given are {len(tables)} tables"
        )

    return value(_parsed(text)[0])


def canonical(predicate: sympy.Basic) -> sympy.Basic:
    """A predicate with its inequalities over `q - k` in one spelling: `k <= q`, `q - k < w`."""
    if isinstance(predicate, sympy.And):
        return sympy.And(*(canonical(part) for part in predicate.args))
    if isinstance(predicate, sympy.Or):
        return sympy.Or(*(canonical(part) for part in predicate.args))
    if isinstance(predicate, sympy.Not):
        return sympy.Not(canonical(predicate.args[0]))
    if isinstance(predicate, (sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge)):
        return _inequality(predicate)
    return predicate


def _inequality(relation: Relational) -> sympy.Basic:
    # Over integers a < b is a <= b - 1, so every inequality becomes low <= high.
    low, high = (
        (relation.lhs, relation.rhs) if isinstance(relation, (sympy.Lt, sympy.Le)) else (relation.rhs, relation.lhs)
    )
    strict = isinstance(relation, (sympy.Lt, sympy.Gt))
    slack = sympy.expand(high - low)
    distance = sympy.Dummy("distance", integer=True)
    linear = sympy.expand(slack.subs(KEY, QUERY - distance))
    if linear.free_symbols != {distance} or not linear.is_polynomial(distance) or sympy.degree(linear, distance) != 1:
        return relation
    step, rest = linear.coeff(distance, 1), linear.coeff(distance, 0)
    if step not in (1, -1) or not rest.is_Integer:
        return relation
    bound = rest - (1 if strict else 0)  # step * distance + bound >= 0
    if step == -1:
        return sympy.Lt(QUERY - KEY, bound + 1, evaluate=False)
    return sympy.Le(KEY, QUERY) if bound == 0 else sympy.Le(KEY, QUERY + bound, evaluate=False)


def text_of(formula: sympy.Basic) -> str:
    """The text of a sympy formula over q, k, h and tables; `InvalidGraph` when it holds anything else."""
    text = _print(formula)
    validate(text)
    return text


def _print(node: sympy.Basic) -> str:
    if node in (sympy.true, sympy.false):
        return "True" if node == sympy.true else "False"
    if node in (QUERY, KEY, HEAD):
        return str(node)
    if isinstance(node, sympy.Integer):
        return str(int(node))
    if isinstance(node, sympy.Rational):
        return f"{int(node.p)} / {int(node.q)}"
    if isinstance(node, sympy.Float):
        return repr(float(node))
    if isinstance(node, (sympy.And, sympy.Or)):
        parts = sorted((_print(part) for part in node.args), key=lambda part: (len(part), part))
        return (" & " if isinstance(node, sympy.And) else " | ").join(f"({part})" for part in parts)
    if isinstance(node, sympy.Not):
        return f"~({_print(node.args[0])})"
    if isinstance(node, Relational):
        sign = {"==": "==", "!=": "!="}.get(node.rel_op, node.rel_op)
        return f"{_print(node.lhs)} {sign} {_print(node.rhs)}"
    if isinstance(node, sympy.Add):
        text = ""
        for term in sorted(
            node.args, key=lambda term: (term.could_extract_minus_sign(), bool(term.is_number), str(term))
        ):
            if term.could_extract_minus_sign():
                text += f" - {_factor(-term)}" if text else f"-{_factor(-term)}"
            else:
                text += f" + {_factor(term)}" if text else _factor(term)
        return text
    if isinstance(node, sympy.Mul):
        return " * ".join(_factor(part) for part in node.args)
    if isinstance(node, sympy.Pow):
        return f"{_factor(node.base)} ** {_factor(node.exp)}"
    if isinstance(node, sympy.Mod):
        return f"{_factor(node.args[0])} % {_factor(node.args[1])}"
    if isinstance(node, sympy.floor):
        quotient, divisor = node.args[0].as_numer_denom()
        return f"{_factor(quotient)} // {_factor(divisor)}"
    if isinstance(node, sympy.Piecewise):
        text = _print(node.args[-1][0])
        for branch, condition in reversed(node.args[:-1]):
            text = f"where({_print(condition)}, {_print(branch)}, {text})"
        return text
    if isinstance(node, (sympy.Min, sympy.Max)):
        name = "minimum" if isinstance(node, sympy.Min) else "maximum"
        text = _print(node.args[0])
        for part in node.args[1:]:
            text = f"{name}({text}, {_print(part)})"
        return text
    if isinstance(node, (sympy.Abs, sympy.log, sympy.exp)):
        return f"{type(node).__name__.lower()}({_print(node.args[0])})"
    if isinstance(node, sympy.core.function.AppliedUndef):
        return f"{node.func}[{', '.join(_print(part) for part in node.args)}]"
    raise InvalidGraph(f"mask formula holds {node} ({type(node).__name__}); expected a function of q, k, h and tables")


def _factor(node: sympy.Basic) -> str:
    text = _print(node)
    plain = node.is_Symbol or isinstance(node, (sympy.core.function.AppliedUndef, sympy.Abs, sympy.Min, sympy.Max))
    return text if plain or (isinstance(node, sympy.Integer) and node >= 0) else f"({text})"
