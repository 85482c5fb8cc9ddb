"""Where the command line writes: data to stdout as text or JSON, everything else to stderr."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

SCHEMA_VERSION = 1
"""Version of the JSON that every command prints with `--json`; rises when a field changes or goes."""

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def print_json(fields: Mapping[str, object]) -> None:
    """Print one JSON document to stdout, with `schema_version` first."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **fields}, indent=2, ensure_ascii=False))


def print_error(message: str) -> None:
    """Print `error: message` to stderr, in red where that is possible."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False)


def print_note(message: str) -> None:
    """Print one line to stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)


def print_lines(lines: Iterable[str]) -> None:
    """Print text lines to stdout as they are."""
    for line in lines:
        print(line)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table to stdout, as wide as it needs; numbers are aligned right."""
    rows = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else 400)
    if terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    print_lines(line.rstrip() for line in captured.get().splitlines())


def size(number: float) -> str:
    """A number of bytes for people: `93.8 MiB`."""
    for unit in _UNITS[:-1]:
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} {_UNITS[-1]}"


def duration(seconds: float) -> str:
    """A time for people: `3.1 ms`, `12.4 s`, `2 min 05 s`."""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _cell(value: object) -> str:
    from rich.markup import escape

    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return escape(str(value))
