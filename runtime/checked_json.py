"""JSON from a stranger: parsed within limits, then read field by field; whatever is wrong is an ArtifactRejected."""

import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NoReturn, TypeVar, cast

from llmc.errors import ArtifactRejected

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""Any JSON value."""

MAX_DEPTH = 64
"""Deepest nesting of lists and objects that is accepted."""
MAX_TEXT = 64 * 1024
"""Longest string that is accepted as a field, in characters."""

_T = TypeVar("_T")
_FILE_NAME = re.compile(r"[A-Za-z0-9._/-]+")


def parse(content: bytes, where: str) -> "Field":
    """Parse UTF-8 JSON without duplicate keys, NaN, infinities or nesting beyond `MAX_DEPTH`.

    `where` names the document in messages. Raises ArtifactRejected.
    """
    try:
        value: Json = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ArtifactRejected(f"{where}: not the JSON that llmc writes ({reason}); build the artifact again") from None
    _check_depth(value, where)
    return Field(value, where)


def canonical(value: object) -> bytes:
    """The one spelling of a JSON value that llmc writes: sorted keys, ASCII, one space of indent, a final newline.

    Raises ValueError for NaN and infinities.
    """
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def is_file_name(name: str) -> bool:
    """Whether `name` is a relative path that an artifact may contain: plain characters, no empty or dotted part."""
    if not _FILE_NAME.fullmatch(name) or len(name) > 1024:
        return False
    return all(part not in ("", ".", "..") and len(part) <= 255 for part in name.split("/"))


class Field:
    """A JSON value together with its place, read by asking for the type and the range that it must have.

    Every method raises ArtifactRejected, naming the place, what was found and what was expected.
    """

    def __init__(self, value: Json, where: str) -> None:
        self.value = value
        self.where = where

    def reject(self, expected: str) -> NoReturn:
        """Raise ArtifactRejected: this value is not what was `expected`."""
        raise ArtifactRejected(
            f"{self.where}: expected {expected}, found {_brief(self.value)}; build the artifact again"
        )

    def integer(self, low: int, high: int) -> int:
        """An integer of at least `low` and at most `high`."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not low <= self.value <= high:
            self.reject(f"an integer from {low} to {high}")
        return self.value

    def number(self) -> float:
        """A finite number."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool) or abs(self.value) > 1e300:
            self.reject("a number")
        return float(self.value)

    def text(self, pattern: re.Pattern[str] | None = None) -> str:
        """A string of at most `MAX_TEXT` characters that `pattern` matches as a whole."""
        if not isinstance(self.value, str) or len(self.value) > MAX_TEXT:
            self.reject("a string")
        if pattern is not None and not pattern.fullmatch(self.value):
            self.reject(f"a string that matches {pattern.pattern}")
        return self.value

    def choice(self, *allowed: str) -> str:
        """One of the strings `allowed`."""
        if not isinstance(self.value, str) or self.value not in allowed:
            self.reject(" or ".join(repr(item) for item in allowed))
        return self.value

    def file_name(self) -> str:
        """The name of a file in the artifact (see `is_file_name`)."""
        if not isinstance(self.value, str) or not is_file_name(self.value):
            self.reject("a relative file name of letters, digits, '.', '_', '-' and '/' without '..'")
        return self.value

    def items(self, most: int) -> list["Field"]:
        """The elements of a list of at most `most`."""
        if not isinstance(self.value, list) or len(self.value) > most:
            self.reject(f"a list of at most {most}")
        return [Field(item, f"{self.where}[{index}]") for index, item in enumerate(self.value)]

    def entries(self, most: int) -> Iterator[tuple[str, "Field"]]:
        """The names and values of an object of at most `most`."""
        if not isinstance(self.value, dict) or len(self.value) > most:
            self.reject(f"an object of at most {most} entries")
        return ((name, Field(item, f"{self.where}.{_brief_name(name)}")) for name, item in self.value.items())

    def members(self, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, "Field"]:
        """The members of an object that has all `required` names, maybe `optional` ones, and no others."""
        if not isinstance(self.value, dict):
            self.reject("an object")
        for name in required:
            if name not in self.value:
                raise ArtifactRejected(f"{self.where}: {name!r} is missing; build the artifact again")
        for name in self.value:
            if name not in required and name not in optional:
                known = ", ".join(required + optional)
                raise ArtifactRejected(
                    f"{self.where}: {_brief(name)} is unknown to this llmc, which knows {known};"
                    " use the llmc that built the artifact"
                )
        return {name: Field(item, f"{self.where}.{name}") for name, item in self.value.items()}

    def row(self, width: int) -> list["Field"]:
        """The elements of a list of `width`."""
        if not isinstance(self.value, list) or len(self.value) != width:
            self.reject(f"a list of {width}")
        return self.items(width)

    def integer_rows(self, most: int, least_width: int) -> list[list[int]]:
        """The rows of a table: at most `most` lists of `least_width` integers or more, whatever these may be.

        All are looked at at once, since tables are long.
        """
        rows = self.value
        if not isinstance(rows, list) or len(rows) > most:
            self.reject(f"a list of at most {most}")
        if set(map(type, rows)) <= {list} and min(map(len, cast(list[list[Json]], rows)), default=least_width) >= (
            least_width
        ):
            table = cast(list[list[int]], rows)
            if set(map(type, chain.from_iterable(table))) <= {int}:
                return table
        for item in self.items(most):
            if not isinstance(item.value, list) or len(item.value) < least_width:
                item.reject(f"a list of at least {least_width} integers")
            for number in item.items(len(item.value)):
                if type(number.value) is not int:
                    number.reject("an integer")
        raise AssertionError("one of the rows is at fault")

    def optional(self, read: Callable[["Field"], _T]) -> _T | None:
        """None for null, otherwise what `read` makes of this field."""
        return None if self.value is None else read(self)


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: Json, where: str) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [child for children in inner for child in children if isinstance(child, (dict, list))]
        if not level:
            return
    raise ArtifactRejected(f"{where}: nested deeper than {MAX_DEPTH}; build the artifact again")


def _brief(value: Json) -> str:
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "an integer beyond 64 bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _brief_name(name: str) -> str:
    return name if is_file_name(name) and len(name) <= 80 else _brief(name)
