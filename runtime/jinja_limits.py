"""A Jinja sandbox that bounds work and memory.

Jinja's own sandbox keeps a template from reaching Python; it lets it run and allocate without end. Here every turn of a
loop, every call and every text or list that an expression makes is charged to a budget. Lists and objects are charged
with all that they contain, so that nesting one in another again and again does not make what takes forever to print.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 2_000_000
"""Budget of one rendering; the templates of published models take a few thousand steps for a long conversation."""
MAX_CHARACTERS = 1 << 22
"""Longest text that an expression or a rendering may make."""

_CHARACTERS_PER_STEP = 64
_CALL_STEPS = 20  # a step is a turn of an empty loop, 0.4 us; a call of a macro takes 8 us (Xeon, 2026-11)
_MAX_BITS = 256
"""Size of integers; exponents stay below it as well."""
_MAX_WIDTH = 10_000
"""Padding, indentation and number of columns."""
_WIDE_FORMAT = re.compile(r"\d{5}|\{[^{}]*\{|%[^a-zA-Z%]*\*")
"""Formats that state a width of five digits or take a width from an argument."""
_REFUSED_METHODS = {"translate", "maketrans", "expandtabs", "encode", "format_map"}
"""Methods of texts that can make a large one of small ones, and that chat templates do not use."""


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one template; `refill` before each rendering."""

    intercepted_binops = frozenset(["+", "-", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the options of a jinja environment
        super().__init__(optimized=False, **options)
        self._steps = MAX_STEPS
        for name, function in self.filters.items():
            self.set_filter(name, function)
        self.filters["counted"] = self._counted
        self.filters["weighed"] = pass_context(lambda _, value: self._weighed(value))
        self.filters["concatenated"] = pass_context(lambda _, parts: self.concat(map(str, self._weighed(parts))))

    def refill(self) -> None:
        """Grant the budget anew."""
        self._steps = MAX_STEPS

    def set_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Make a filter available; its arguments are checked and its result is charged."""

        skipped = int(hasattr(function, "jinja_pass_arg"))

        def limited(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the filter takes
            self._charge(1)
            passed, given = args[:skipped], args[skipped:]
            if name == "join" and given and not isinstance(given[0], str | list | tuple):
                given = (list(self._counted(None, given[0])), *given[1:])
            _check_filter(name, given, kwargs)
            return self._weighed(function(*passed, *given, **kwargs))

        limited.__dict__.update(getattr(function, "__dict__", {}))
        self.filters[name] = limited

    def concat(self, parts: Iterable[str]) -> str:
        """Join the pieces of an output."""
        pieces, length = [], 0
        for part in parts:
            length += len(part)
            if length > MAX_CHARACTERS:
                raise SecurityError(f"it makes a text of more than {MAX_CHARACTERS} characters")
            self._charge(1)
            pieces.append(part)
        self._charge(length // _CHARACTERS_PER_STEP)
        return "".join(pieces)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as jinja's
        """Call a function, macro or method from a template."""
        __self._charge(_CALL_STEPS)
        __self._weighed([*args, *kwargs.values()])
        method = getattr(__obj, "__wrapped__", __obj)  # jinja hands out format() wrapped
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes):
            name = str(getattr(method, "__name__", ""))
            if name == "join" and args:
                args = ([*__self._counted(__context, args[0])], *args[1:])
            _check_method(owner, name, args, kwargs)
        return __self._weighed(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - any operands
        """Calculate one of `intercepted_binops`."""
        self._charge(1)
        _check_operands(operator, left, right)
        return self._weighed(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Instrument().visit(tree)
        return tree

    @pass_context
    def _counted(self, context: Context | None, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._charge(1)
            yield value

    def _weighed(self, value: Any) -> Any:  # noqa: ANN401 - any value of a template
        """`value`, once it and all that it contains has been charged."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str | bytes):
                if len(item) > MAX_CHARACTERS:
                    raise SecurityError(f"it makes a text of more than {MAX_CHARACTERS} characters")
                self._charge(1 + len(item) // _CHARACTERS_PER_STEP)
            elif isinstance(item, int) and item.bit_length() > _MAX_BITS:
                raise SecurityError(f"it makes an integer of more than {_MAX_BITS} bits")
            elif isinstance(item, list | tuple):
                self._charge(1 + len(item))
                waiting.extend(item)
            elif isinstance(item, Mapping):
                self._charge(1 + 2 * len(item))
                waiting.extend(item.keys())
                waiting.extend(item.values())
        return value

    def _charge(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise SecurityError(f"it takes more than {MAX_STEPS} steps")


class _Instrument(NodeTransformer):
    """Makes loops counted, and lists, objects and concatenations weighed."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr), "a loop runs over an expression"
        node.iter = _filtered(node.iter, "counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "concatenated")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "weighed")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "weighed")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "weighed") if node.ctx == "load" else node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _check_operands(operator: str, left: object, right: object) -> None:
    if operator == "%" and isinstance(left, str | bytes):
        _check_format(str(left))
    if operator == "**" and isinstance(right, int | float) and abs(right) > _MAX_BITS:
        raise SecurityError(f"it takes a power above {_MAX_BITS}")
    if operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(times, int):
                _check_size(len(value) * times)
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        _check_size(len(left) + len(right))


def _check_method(owner: str | bytes, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call of a text's method whose result could be far larger than what goes in."""
    if name in _REFUSED_METHODS or isinstance(owner, bytes):
        raise SecurityError(f"it calls {name[:40]!r} of a text, which is not allowed")
    if name in ("ljust", "rjust", "center", "zfill"):
        _check_widths(args)
    if name == "format":
        _check_format(owner)
    if name == "replace" and len(args) >= 2:
        _check_replacement(owner, args[0], args[1])
    if name == "join" and args:
        _check_join(args[0], owner)


def _check_filter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a filter whose result could be far larger than what goes in."""
    value, rest = (args[0] if args else None), [*args[1:], *kwargs.values()]
    if name in ("center", "batch", "slice", "wordwrap", "round"):
        _check_widths(rest)
    if name == "indent":
        _check_widths(rest)
        widest = max([4, *(len(item) if isinstance(item, str) else int(item) for item in rest)])
        _check_size(len(str(value)) + str(value).count("\n") * widest)
    if name == "replace" and len(rest) >= 2:
        _check_replacement(str(value), str(rest[0]), str(rest[1]))
    if name == "join" and rest and isinstance(value, list | tuple):
        _check_join(value, str(rest[0]))
    if name == "format":
        _check_format(str(value))
    if name == "sum" and not isinstance(kwargs.get("start", args[2] if len(args) > 2 else 0), int | float):
        raise SecurityError("it sums what are not numbers")


def _check_widths(values: Iterable[object]) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_WIDTH for value in values):
        raise SecurityError(f"it asks for a width above {_MAX_WIDTH}")


def _check_format(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise SecurityError("it formats with a width of five digits or a width from an argument")


def _check_replacement(text: str, old: object, new: object) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _check_size(len(text) + text.count(old) * len(new))


def _check_join(items: list[Any] | tuple[Any, ...], separator: str) -> None:
    _check_size(len(items) * len(separator) + sum(len(item) for item in items if isinstance(item, str)))


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise SecurityError(f"it makes a text or list of more than {MAX_CHARACTERS}")
