"""Which keys the programs of an attention visit, as text: from ranges of keys to blocks, and to what masks a block.

Positions are int32, and so are the ends of ranges, unless a formula leaves them on the way.
"""

import ast

from llmc.codegen.formula_terms import extremes, magnitude, parsed, parts, value_of
from llmc.codegen.key_ranges import FAR, key_ranges
from llmc.codegen.regions import Attention
from llmc.codegen.triton.kernel import KernelText


class VisibleKeys:
    """The keys of one attention, for the text of one kernel."""

    def __init__(self, region: Attention, text: KernelText) -> None:
        self.text = text
        self.found = key_ranges(region.mask, region.heads)
        self.ranges = self.found.ranges

    @property
    def plain(self) -> bool:
        """Whether the keys are one range, all of which is seen: its ends are all that blocks are masked by."""
        return self.found.exact and len(self.ranges) == 1

    @property
    def apart(self) -> bool:
        """Whether there are two ranges, and a gap between them."""
        return len(self.ranges) > 1

    @property
    def ends_at_query(self) -> bool:
        """Whether no key after the query's own is seen, by the end of one range."""
        return self.plain and (distance := _distance(self.ranges[0].high)) is not None and distance <= 0

    def of_sequence(self, keys: int) -> str:
        """The name of a function (length, KEYS) -> the first key, at the begin of a block, and the last + 1, of what
        the last token of a sequence sees, counted without a gap."""
        if not self.apart:
            (only,) = self.ranges
            begin = "length * 0" if only.low is None else f"{self._low(only.low, 'q')} // KEYS * KEYS"
            lines = [f"return {begin}, {self._end(only.high, 'q', 'length')}"]
            lines = ["q = length - 1", *lines] if "q" in lines[0] else lines
            return self.text.function("keys", "length, KEYS: tl.constexpr", lines)
        between = self.text.function(
            "ranges", "length, KEYS: tl.constexpr", ["q = length - 1", f"return {self._both('q', 'q', 'length')}"]
        )
        return self.text.function(
            "keys",
            "length, KEYS: tl.constexpr",
            [f"begin, _, gap, end = {between}(length, KEYS)", "return begin, end - gap"],
        )

    def gap_of_sequence(self, length: str, keys: int) -> list[str]:
        """Lines that set `gap_at`, `gap` and `stop`, the last key + 1, for the last token of a sequence."""
        between = self.of_sequence(keys).replace("keys", "ranges")
        return [f"_, gap_at, gap, stop = {between}({length}, {keys})"]

    def of_tile(self, keys: int) -> list[str]:
        """Lines that set `begin`, at the begin of a block, and `stop`, the last key + 1, of what queries at positions
        from `low` to `high` see, and with two ranges `gap_at` and `gap`; `length` is the sequence's."""
        if self.apart:
            return [f"begin, gap_at, gap, stop = {self._both('low', 'high', 'length', keys)}"]
        (only,) = self.ranges
        low = None if only.low is None else self._extreme(only.low, 0)
        high = None if only.high is None else self._extreme(only.high, 1)
        return [f"begin = {self._clipped(low)} // {keys} * {keys}", f"stop = {self._clipped_end(high, 'length')}"]

    def inner(self) -> tuple[str | None, str]:
        """Expressions of the first key that all queries of a tile see, None for the first of all, and of the last + 1,
        which may be negative, where there is one range."""
        (only,) = self.ranges
        low = None if only.low is None else f"tl.maximum({self._extreme(only.low, 1)}, 0)"
        return low, "length" if only.high is None else f"tl.minimum({self._extreme(only.high, 0)} + 1, length)"

    def limits(self, *, ends: bool) -> tuple[list[str], list[str]]:
        """Lines before loops over blocks, and predicates within, of `k_position` and `position`: that keys are in the
        one range. Without its end unless `ends`."""
        (only,) = self.ranges
        before: list[str] = []
        tests: list[str] = []
        for formula, name, sign in ((only.high, "latest", "<="), (only.low, "earliest", ">=")):
            if formula is None or (name == "latest" and not ends):
                continue
            distance = _distance(formula)
            if distance is not None:
                tests.append(f"(k_position {sign} {_plus('position', distance)})")
            else:
                before.append(f"{name} = {self._whole(formula, {'q': 'position'})}")
                tests.append(f"(k_position {sign} {name})")
        return before, tests

    def _both(self, low: str, high: str, length: str, keys: int | str = "KEYS") -> str:
        call = self.text.call("visible_keys", "two_ranges")
        sides: list[str] = []
        for each in self.ranges:
            least = None if each.low is None else self._between(each.low, low, high, 0)
            most = None if each.high is None else self._between(each.high, low, high, 1)
            sides += [self._clipped(least), self._clipped_end(most, length)]
        return f"{call}({', '.join(sides)}, {keys})"

    def _low(self, formula: str | None, query: str) -> str:
        return self._clipped(None if formula is None else self._whole(formula, {"q": query}))

    def _end(self, formula: str | None, query: str, length: str) -> str:
        if formula is not None and _distance(formula) == 0:
            return length
        return self._clipped_end(None if formula is None else self._whole(formula, {"q": query}), length)

    def _extreme(self, formula: str, which: int) -> str:
        return self._between(formula, "low", "high", which)

    def _between(self, formula: str, low: str, high: str, which: int) -> str:
        """The least (0) or greatest (1) value of a formula where q is from `low` to `high`."""
        if low == high:
            return self._whole(formula, {"q": low})
        return self._whole(extremes(formula, {"q": (low, high)})[which], {})

    @staticmethod
    def _clipped(number: str | None) -> str:
        return "0" if number is None else f"tl.maximum({number}, 0)"

    @staticmethod
    def _clipped_end(number: str | None, length: str) -> str:
        return length if number is None else f"tl.minimum(tl.maximum({number} + 1, 0), {length})"

    def _whole(self, formula: str, names: dict[str, str]) -> str:
        """A formula as an expression of int32, in which variables have other names."""
        node = parsed(formula)
        variables = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        wide = magnitude(formula, dict.fromkeys(variables, FAR)) >= 1 << 31
        text = self._text(node, names, ".to(tl.int64)" if wide else "")
        return f"tl.minimum(tl.maximum({text}, -{FAR}), {FAR}).to(tl.int32)" if wide else text

    def _text(self, node: ast.expr, names: dict[str, str], cast: str) -> str:
        def inner(part: ast.expr) -> str:
            return self._text(part, names, cast)

        match node:
            case ast.Name(id=name):
                return names.get(name, name) + cast
            case ast.Constant(value=int(value)):
                return str(value)
            case ast.UnaryOp(_, operand):
                return f"(-{inner(operand)})"
            case ast.BinOp(left, ast.FloorDiv() | ast.Mod() as op, right):
                size = value_of(right)
                floor = f"{self.text.call('visible_keys', 'floor_by')}({inner(left)}, {size})"
                return floor if isinstance(op, ast.FloorDiv) else f"({inner(left)} - {floor} * {size})"
            case ast.BinOp(left, op, right):
                sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}[type(op)]
                return f"({inner(left)} {sign} {inner(right)})"
            case ast.Compare(left, [op], [right]):
                sign = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}[type(op)]
                return f"({inner(left)} {sign} {inner(right)})"
            case ast.Call(ast.Name(id="floor"), [operand], _):
                return inner(operand)
            case ast.Call(ast.Name(id=name), args, _):
                return f"tl.{name}({', '.join(inner(arg) for arg in args)})"
        raise AssertionError(f"no whole formula: {ast.unparse(node)}")


def _distance(formula: str | None) -> int | None:
    """How far behind the query a position is that is its own plus a number."""
    if formula is None:
        return None
    rest, number = parts(parsed(formula))
    return number if isinstance(rest, ast.Name) and abs(number) < FAR else None


def _plus(name: str, number: int) -> str:
    return name if not number else f"{name} {'+' if number > 0 else '-'} {abs(number)}"
