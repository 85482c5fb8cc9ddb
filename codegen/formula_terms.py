"""Whole-number formulas as syntax trees: sums and quotients with constants folded, and the values that they can take.

    extremes("q // 8 * 8", {"q": ("low", "high")}) -> ("low // 8 * 8", "high // 8 * 8")
    magnitude("q // 8 * 8", {"q": 1000}) -> 1007

The grammar is that of masks (`llmc.ir.mask`), without tables and numbers with fractions.
"""

import ast
from collections.abc import Mapping

Interval = tuple[ast.expr, ast.expr]
"""Formulas of the least and of the greatest value; both may be out of reach, but no value is beyond them."""


def parsed(text: str) -> ast.expr:
    """The tree of a formula."""
    return ast.parse(text, mode="eval").body


def constant(value: int) -> ast.expr:
    """A number, as formulas spell it."""
    number = ast.Constant(abs(value))
    return ast.UnaryOp(ast.USub(), number) if value < 0 else number


def value_of(node: ast.expr) -> int | None:
    """The number that a formula is; None if it is another formula."""
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(value=int(value))) if not isinstance(value, bool):
            return -value
    return None


def plus(node: ast.expr, number: int) -> ast.expr:
    """A formula plus a number."""
    rest, own = parts(node)
    total = own + number
    if rest is None:
        return constant(total)
    if total == 0:
        return rest
    return ast.BinOp(rest, ast.Add() if total > 0 else ast.Sub(), ast.Constant(abs(total)))


def parts(node: ast.expr) -> tuple[ast.expr | None, int]:
    """A formula as another one, if there is another, plus a number."""
    number = value_of(node)
    if number is not None:
        return None, number
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        right = value_of(node.right)
        if right is not None:
            rest, own = parts(node.left)
            return rest, own + right if isinstance(node.op, ast.Add) else own - right
    return node, 0


def added(a: ast.expr, b: ast.expr) -> ast.expr:
    """The sum of two formulas."""
    (first, one), (second, other) = parts(a), parts(b)
    if first is None or second is None:
        return plus(first or second or constant(0), one + other)
    return plus(ast.BinOp(first, ast.Add(), second), one + other)


def subtracted(a: ast.expr, b: ast.expr) -> ast.expr:
    """The difference of two formulas: of x and x % c as x // c * c, whose bounds are known."""
    (first, one), (second, other) = parts(a), parts(b)
    if second is None:
        return plus(a, -other)
    if first is not None and same(first, second):
        return constant(one - other)
    if first is None:
        return plus(negated(second), one - other)
    match second:
        case ast.BinOp(x, ast.Mod(), divisor) if same(x, first):
            return plus(times(divided(first, _positive(divisor)), _positive(divisor)), one - other)
    return plus(ast.BinOp(first, ast.Sub(), second), one - other)


def negated(node: ast.expr) -> ast.expr:
    """A formula times -1."""
    number = value_of(node)
    if number is not None:
        return constant(-number)
    return node.operand if isinstance(node, ast.UnaryOp) else ast.UnaryOp(ast.USub(), node)


def times(node: ast.expr, factor: int) -> ast.expr:
    """A formula times a number."""
    number = value_of(node)
    if number is not None:
        return constant(number * factor)
    return node if factor == 1 else ast.BinOp(node, ast.Mult(), constant(factor))


def divided(node: ast.expr, divisor: int) -> ast.expr:
    """A formula over a positive number, rounded down."""
    number = value_of(node)
    if number is not None:
        return constant(number // divisor)
    return node if divisor == 1 else ast.BinOp(node, ast.FloorDiv(), ast.Constant(divisor))


def chosen(name: str, a: ast.expr, b: ast.expr) -> ast.expr:
    """The "minimum" or "maximum" of two formulas."""
    (first, one), (second, other) = parts(a), parts(b)
    if (first is None and second is None) or (first is not None and second is not None and same(first, second)):
        return a if (one <= other) == (name == "minimum") else b
    return ast.Call(ast.Name(name), [a, b], [])


def same(a: ast.expr, b: ast.expr) -> bool:
    """Whether two formulas are spelled the same."""
    return ast.unparse(a) == ast.unparse(b)


def holds(node: ast.expr, *names: str) -> bool:
    """Whether a formula has one of these variables."""
    return any(isinstance(part, ast.Name) and part.id in names for part in ast.walk(node))


def is_whole(node: ast.expr) -> bool:
    """Whether a formula is a whole number of variables, without tables and with positive numbers as divisors."""
    match node:
        case ast.Name():
            return True
        case ast.Constant(value=bool()):
            return False
        case ast.Constant(value=int()):
            return True
        case ast.UnaryOp(ast.USub(), operand):
            return is_whole(operand)
        case ast.BinOp(left, ast.FloorDiv() | ast.Mod(), right):
            return is_whole(left) and (value_of(right) or 0) > 0
        case ast.BinOp(left, ast.Mult(), right):
            return is_whole(left) and is_whole(right) and not (value_of(left) is None and value_of(right) is None)
        case ast.BinOp(left, ast.Add() | ast.Sub(), right):
            return is_whole(left) and is_whole(right)
        case ast.Call(ast.Name(id="minimum" | "maximum" | "abs" | "floor"), args, _):
            return all(is_whole(arg) for arg in args)
        case ast.Call(ast.Name(id="where"), [condition, *args], _):
            return is_comparison(condition) and all(is_whole(arg) for arg in args)
    return False


def is_comparison(node: ast.expr) -> bool:
    """Whether a formula compares whole numbers by order."""
    match node:
        case ast.Compare(left, [ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()], [right]):
            return is_whole(left) and is_whole(right)
    return False


def _positive(node: ast.expr) -> int:
    number = value_of(node)
    assert number is not None and number > 0, "divisors are positive numbers"
    return number


def extremes(text: str, among: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Formulas of the least and of the greatest value of a whole formula, where each variable lies between two others.

    Variables that are not named stand for themselves.
    """
    least, greatest = _interval(parsed(text), {name: (parsed(a), parsed(b)) for name, (a, b) in among.items()})
    return ast.unparse(least), ast.unparse(greatest)


def _interval(node: ast.expr, among: Mapping[str, Interval]) -> Interval:
    if value_of(node) is not None:
        return node, node
    match node:
        case ast.Name(id=name):
            return among.get(name, (node, node))
        case ast.UnaryOp(_, operand):
            least, greatest = _interval(operand, among)
            return negated(greatest), negated(least)
        case ast.BinOp(left, ast.FloorDiv(), right):
            least, greatest = _interval(left, among)
            return divided(least, _positive(right)), divided(greatest, _positive(right))
        case ast.BinOp(left, ast.Mod(), right):
            least, greatest = _interval(left, among)
            if same(least, greatest):
                remainder = ast.BinOp(least, ast.Mod(), right)
                return remainder, remainder
            return constant(0), constant(_positive(right) - 1)
        case ast.BinOp(left, ast.Mult(), right):
            factor, other = (value_of(left), right) if value_of(left) is not None else (value_of(right), left)
            assert factor is not None, "one of both is a number"
            least, greatest = (times(end, factor) for end in _interval(other, among))
            return (least, greatest) if factor >= 0 else (greatest, least)
        case ast.BinOp(left, op, right):
            (a, b), (c, d) = _interval(left, among), _interval(right, among)
            if isinstance(op, ast.Add):
                return added(a, c), added(b, d)
            return subtracted(a, d), subtracted(b, c)
        case ast.Call(ast.Name(id="where"), [condition, then, other], _):
            return _where(condition, _interval(then, among), _interval(other, among), among)
        case ast.Call(ast.Name(id="abs"), [operand], _):
            least, greatest = _interval(operand, among)
            if same(least, greatest):
                return ast.Call(ast.Name("abs"), [least], []), ast.Call(ast.Name("abs"), [least], [])
            nearest = chosen("maximum", chosen("maximum", least, negated(greatest)), constant(0))
            return nearest, chosen("maximum", greatest, negated(least))
        case ast.Call(ast.Name(id="floor"), [operand], _):
            return _interval(operand, among)
        case ast.Call(ast.Name(id=name), [first, second], _):
            (a, b), (c, d) = _interval(first, among), _interval(second, among)
            return chosen(name, a, c), chosen(name, b, d)
    raise AssertionError(f"no whole formula: {ast.unparse(node)}")


def _where(condition: ast.expr, then: Interval, other: Interval, among: Mapping[str, Interval]) -> Interval:
    """Of a choice: where the condition holds for all values of variables, for some, or for none."""
    assert isinstance(condition, ast.Compare), "a comparison"
    (a, b), (c, d) = _interval(condition.left, among), _interval(condition.comparators[0], among)
    rising = isinstance(condition.ops[0], ast.Lt | ast.LtE)
    always = ast.Compare(b if rising else a, condition.ops, [c if rising else d])
    sometimes = ast.Compare(a if rising else b, condition.ops, [d if rising else c])

    def choice(name: str, first: ast.expr, second: ast.expr) -> ast.expr:
        if same(always, sometimes):
            return ast.Call(ast.Name("where"), [always, first, second], [])
        both = chosen(name, first, second)
        inner = both if same(both, second) else ast.Call(ast.Name("where"), [sometimes, both, second], [])
        return inner if same(inner, first) else ast.Call(ast.Name("where"), [always, first, inner], [])

    return choice("minimum", then[0], other[0]), choice("maximum", then[1], other[1])


def magnitude(text: str, most: Mapping[str, int]) -> int:
    """A number that no integer is greater than, of a formula and all that it is computed from, whose variables are not
    negative and at most these; beyond 64 bits where that is not known."""
    return max(_magnitude(node, most) for node in ast.walk(parsed(text)) if isinstance(node, ast.expr))


def _magnitude(node: ast.expr, most: Mapping[str, int]) -> int:
    match node:
        case ast.Name(id=name):
            return most.get(name, 0)
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(_, operand):
            return _magnitude(operand, most)
        case ast.BinOp(left, ast.FloorDiv(), right) if (size := value_of(right) or 0) > 0:
            return _magnitude(left, most) // size + 1
        case ast.BinOp(_, ast.Mod(), right) if (size := value_of(right) or 0) > 0:
            return size
        case ast.BinOp(_, ast.FloorDiv() | ast.Mod() | ast.Pow(), _):
            return 1 << 64
        case ast.BinOp(left, ast.Mult(), right):
            return _magnitude(left, most) * _magnitude(right, most)
        case ast.BinOp(left, _, right):
            return _magnitude(left, most) + _magnitude(right, most)
        case ast.Call(_, args, _):
            return max(_magnitude(arg, most) for arg in args if not isinstance(arg, ast.Compare))
    return 0
