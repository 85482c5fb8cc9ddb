"""Where the keys are that a query can see, read off a mask formula, so that kernels skip whole blocks of keys.

    key_ranges("(k <= q) & (k // 8192 == q // 8192)", heads=40) -> keys from q // 8192 * 8192 to q, all of them seen
    key_ranges("(k <= q) & ((k < 4) | (q - k < 1024))", heads=8) -> keys from 0 to minimum(q, 3), and from q - 1023 to q

Comparisons are solved for k through sums, multiples, quotients rounded down, absolute values, minima and maxima. What
is not understood is taken for true, which costs the skipping and not the result. No names of masks are known here.
"""

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from llmc.codegen.formula_terms import (
    added,
    chosen,
    constant,
    divided,
    extremes,
    holds,
    is_whole,
    negated,
    parsed,
    parts,
    plus,
    same,
    subtracted,
    times,
    value_of,
)

FAR = 1 << 30
"""No sequence has so many tokens."""
MOST_RANGES = 2
"""More are taken together."""
_MOST_CLAUSES = 16


@dataclass(frozen=True)
class KeyRange:
    """Keys from one formula of q to another."""

    low: str | None
    """The first; None for the first of the sequence. It may be negative."""
    high: str | None
    """The last; None for the last of the sequence. There are none where it is before the first."""

    def __str__(self) -> str:
        return f"{self.low or 0} to {self.high or 'the last'}"


@dataclass(frozen=True)
class KeyRanges:
    """What is known of the keys that the query at position q sees, in any head: they are in one of the ranges."""

    ranges: tuple[KeyRange, ...]
    exact: bool
    """Whether all keys in a range are seen."""
    unknown: str = ""
    """A part of the mask that was not understood."""

    @property
    def begins(self) -> bool:
        """Whether the first keys of long sequences are in no range."""
        return all(each.low is not None for each in self.ranges)

    def note(self, *, listed: bool = False) -> str:
        """Which blocks of keys are visited, for reading. listed: those that a list names, which each step makes."""
        if not listed and len(self.ranges) == 1 and self.ranges[0] == KeyRange(None, None):
            return f"visits all keys{f', as {self.unknown} has no range' if self.unknown else ''}"
        if listed:
            reason = f"as {self.unknown} has no range"
            return f"visits the blocks that hold keys to see, by lists that each step makes, {reason}"
        spans = " and ".join(str(each) for each in self.ranges)
        if self.exact:
            return f"visits keys {spans}, and no others"
        return f"visits keys {spans}, every block of them, as {self.unknown} has no range"


@dataclass(frozen=True)
class _Clause:
    """Keys within all of some bounds."""

    lows: tuple[ast.expr, ...] = ()
    highs: tuple[ast.expr, ...] = ()
    unknown: str = ""
    """What else must be true."""

    def __and__(self, other: "_Clause") -> "_Clause":
        return _Clause(
            _tightest("maximum", (*self.lows, *other.lows)),
            _tightest("minimum", (*self.highs, *other.highs)),
            self.unknown or other.unknown,
        )


def key_ranges(mask: str, heads: int) -> KeyRanges:
    """The keys that a predicate lets a query see in any of so many heads."""
    clauses = _simpler(_solved(parsed(mask), True))
    unknown = next((clause.unknown for clause in clauses if clause.unknown), "")
    if len(clauses) > MOST_RANGES:
        unknown = unknown or f"{len(clauses)} ranges"
        clauses[MOST_RANGES - 1 :] = [reduce(_hull, clauses[MOST_RANGES - 1 :])]
    ranges = [_range(clause) for clause in clauses]
    if any(holds(end, "h") for each in ranges for end in each if end is not None):
        unknown = unknown or "h"
    ends = [_over_heads(each, heads) for each in ranges]
    found = tuple(KeyRange(*(None if end is None else ast.unparse(end) for end in each)) for each in ends)
    return KeyRanges(found or (KeyRange(None, "-1"),), not unknown, unknown)


_Ends = tuple[ast.expr | None, ast.expr | None]


def _range(clause: _Clause) -> _Ends:
    low = reduce(lambda a, b: chosen("maximum", a, b), clause.lows) if clause.lows else None
    return low, reduce(lambda a, b: chosen("minimum", a, b), clause.highs) if clause.highs else None


def _over_heads(ends: _Ends, heads: int) -> _Ends:
    among = {"h": ("0", str(heads - 1))}
    low, high = ends
    return (
        None if low is None else parsed(extremes(ast.unparse(low), among)[0]),
        None if high is None else parsed(extremes(ast.unparse(high), among)[1]),
    )


def _hull(a: _Clause, b: _Clause) -> _Clause:
    lows = _loosest((a.lows, b.lows), "maximum", "minimum")
    return _Clause(lows, _loosest((a.highs, b.highs), "minimum", "maximum"), "several ranges")


def _simpler(clauses: Iterable[_Clause]) -> list[_Clause]:
    """Clauses of which none is part of another, and those that begin or end alike are one."""
    found: list[_Clause] = []
    for clause in clauses:
        _include(found, clause)
    return found


def _include(found: list[_Clause], clause: _Clause) -> None:
    if any((value_of(high) or 0) < 0 for high in clause.highs):
        return
    for place, known in enumerate(found):
        for one, other in ((known, clause), (clause, known)):
            if _within(one.lows, other.lows) and _within(one.highs, other.highs):
                found[place] = one  # the other has more bounds
                return
        if known.unknown or clause.unknown:
            continue
        merged = None
        if _within(known.lows, clause.lows) and _within(clause.lows, known.lows):
            merged = _Clause(known.lows, _loosest((known.highs, clause.highs), "minimum", "maximum"))
        elif _within(known.highs, clause.highs) and _within(clause.highs, known.highs):
            merged = _Clause(_loosest((known.lows, clause.lows), "maximum", "minimum"), known.highs)
        if merged is not None:
            del found[place]
            _include(found, merged)
            return
    found.append(clause)


def _loosest(ends: Sequence[tuple[ast.expr, ...]], inner: str, outer: str) -> tuple[ast.expr, ...]:
    """The end of two clauses together."""
    first, second = ends
    if _within(first, second):
        return first  # the other has more bounds
    if _within(second, first):
        return second
    each = (reduce(lambda a, b: chosen(inner, a, b), end) for end in ends)
    return (reduce(lambda a, b: chosen(outer, a, b), each),)


def _within(some: Iterable[ast.expr], others: Sequence[ast.expr]) -> bool:
    return all(any(same(one, other) for other in others) for one in some)


def _tightest(name: str, bounds: Sequence[ast.expr]) -> tuple[ast.expr, ...]:
    """Bounds without those that others make needless."""
    found: list[ast.expr] = []
    for bound in bounds:
        number = value_of(bound)
        if number is not None and (number <= 0 if name == "maximum" else number >= FAR):
            continue  # as there are no such keys
        for place, known in enumerate(found):
            tighter = chosen(name, known, bound)
            if not isinstance(tighter, ast.Call) or same(tighter, known) or same(tighter, bound):
                found[place] = tighter
                break
        else:
            found.append(bound)
    # A chunk ends after each of its positions.
    return tuple(bound for bound in found if not any(_ends_chunk(bound, other) for other in found))


def _ends_chunk(bound: ast.expr, position: ast.expr) -> bool:
    """Whether a bound is (position // c + 1) * c - 1."""
    rest, number = parts(bound)
    match rest:
        case ast.BinOp(inner, ast.Mult(), factor) if (size := value_of(factor)) is not None and number == -1:
            return same(inner, plus(divided(position, size), 1))
    return False


def _solved(node: ast.expr, wanted: bool) -> list[_Clause]:
    """The keys for which a predicate is `wanted`."""
    match node:
        case ast.Constant(value=bool(value)):
            return [_Clause()] if value is wanted else []
        case ast.UnaryOp(ast.Invert(), operand):
            return _solved(operand, not wanted)
        case ast.BinOp(left, ast.BitAnd() | ast.BitOr() as op, right):
            a, b = _solved(left, wanted), _solved(right, wanted)
            return _both(a, b) if isinstance(op, ast.BitAnd) is wanted else _either(a, b)
        case ast.Call(ast.Name(id="where"), [condition, then, other], _):
            yes = _both(_solved(condition, True), _solved(then, wanted))
            return _either(yes, _both(_solved(condition, False), _solved(other, wanted)))
        case ast.Compare(left, [op], [right]) if is_whole(left) and is_whole(right):
            return _compared(left, _OPPOSITE[type(op)]() if not wanted else op, right)
    return [_Clause(unknown=ast.unparse(node))]


_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip


def _both(first: Sequence[_Clause], second: Sequence[_Clause]) -> list[_Clause]:
    if len(first) * len(second) > _MOST_CLAUSES:
        return [_Clause(unknown="too many alternatives")]
    return [a & b for a in first for b in second]


def _either(first: Sequence[_Clause], second: Sequence[_Clause]) -> list[_Clause]:
    return [*first, *second]


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr) -> list[_Clause]:
    match op:
        case ast.Lt():
            return _at_most(left, plus(right, -1))
        case ast.LtE():
            return _at_most(left, right)
        case ast.Gt():
            return _at_least(left, plus(right, 1))
        case ast.GtE():
            return _at_least(left, right)
        case ast.Eq():
            return _both(_at_most(left, right), _at_least(left, right))
    return _either(_at_most(left, plus(right, -1)), _at_least(left, plus(right, 1)))


def _at_most(left: ast.expr, right: ast.expr) -> list[_Clause]:
    """The keys for which left <= right."""
    return _bounded(left, right, upper=True) if holds(left, "k") else _bounded(right, left, upper=False)


def _at_least(left: ast.expr, right: ast.expr) -> list[_Clause]:
    return _bounded(left, right, upper=False) if holds(left, "k") else _bounded(right, left, upper=True)


def _bounded(node: ast.expr, bound: ast.expr, *, upper: bool) -> list[_Clause]:
    """The keys for which node <= bound, or node >= bound where it is no upper bound."""
    if holds(bound, "k"):
        difference = subtracted(node, bound)
        if isinstance(difference, ast.BinOp) and holds(difference.left, "k") and holds(difference.right, "k"):
            sign = "<=" if upper else ">="
            return [_Clause(unknown=f"{ast.unparse(node)} {sign} {ast.unparse(bound)}")]
        return _bounded(difference, constant(0), upper=upper)
    if not holds(node, "k"):
        # Of q alone: all keys, or none.
        relation: ast.cmpop = ast.LtE() if upper else ast.GtE()
        if value_of(node) is not None and value_of(bound) is not None:
            number, limit = value_of(node) or 0, value_of(bound) or 0
            return [_Clause()] if (number <= limit if upper else number >= limit) else []
        condition = ast.Compare(node, [relation], [bound])
        return [_Clause(highs=(ast.Call(ast.Name("where"), [condition, constant(FAR), constant(-1)], []),))]
    match node:
        case ast.Name():
            return [_Clause(highs=(bound,)) if upper else _Clause(lows=(bound,))]
        case ast.UnaryOp(_, operand):
            return _bounded(operand, negated(bound), upper=not upper)
        case ast.BinOp(left, ast.Add(), right) if not holds(right, "k"):
            return _bounded(left, subtracted(bound, right), upper=upper)
        case ast.BinOp(left, ast.Add(), right) if not holds(left, "k"):
            return _bounded(right, subtracted(bound, left), upper=upper)
        case ast.BinOp(left, ast.Sub(), right) if not holds(right, "k"):
            return _bounded(left, added(bound, right), upper=upper)
        case ast.BinOp(left, ast.Sub(), right) if not holds(left, "k"):
            return _bounded(right, subtracted(left, bound), upper=not upper)
        case ast.BinOp(left, ast.Mult(), right):
            factor, other = (value_of(left), right) if holds(right, "k") else (value_of(right), left)
            if factor:
                return _of_multiple(other, factor, bound, upper=upper)
        case ast.BinOp(left, ast.FloorDiv(), right) if size := value_of(right):
            return _bounded(left, plus(times(plus(bound, 1), size), -1) if upper else times(bound, size), upper=upper)
        case ast.Call(ast.Name(id="floor"), [operand], _):
            return _bounded(operand, bound, upper=upper)
        case ast.Call(ast.Name(id="abs"), [operand], _):
            join = _both if upper else _either
            return join(_bounded(operand, bound, upper=upper), _bounded(operand, negated(bound), upper=not upper))
        case ast.Call(ast.Name(id="minimum" | "maximum" as name), [first, second], _):
            join = _both if (name == "maximum") is upper else _either
            return join(_bounded(first, bound, upper=upper), _bounded(second, bound, upper=upper))
    return [_Clause(unknown=f"{ast.unparse(node)} {'<=' if upper else '>='} {ast.unparse(bound)}")]


def _of_multiple(node: ast.expr, factor: int, bound: ast.expr, *, upper: bool) -> list[_Clause]:
    if factor < 0:
        return _of_multiple(node, -factor, negated(bound), upper=not upper)
    # Rounded towards what there is to be reached.
    return _bounded(node, divided(bound, factor) if upper else negated(divided(negated(bound), factor)), upper=upper)
