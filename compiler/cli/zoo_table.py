"""The table of the zoo on the terminal: each row as it becomes known."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmc.cli import output as out

if TYPE_CHECKING:
    from llmc.zoo.table import Row


def show(families: Sequence[str], *, seconds: float, names_only: bool, prove: bool, json: bool) -> bool:
    """Run the zoo and print its rows, or only the names of all families; return whether no family failed."""
    from llmc.zoo import families as all_families
    from llmc.zoo.table import as_json, run_zoo, summary

    if names_only:
        if json:
            out.print_json({"families": all_families()})
        else:
            out.print_lines(all_families())
        return True

    def progress(row: "Row") -> None:
        if not json:
            out.print_lines(_lines(row))

    rows = run_zoo(families, seconds=seconds, prove=prove, progress=progress)
    if json:
        out.print_json(as_json(rows))
    else:
        out.print_lines([", ".join(f"{count} {verdict}" for verdict, count in summary(rows).items())])
    return not any(row.verdict == "failed" for row in rows)


def _lines(row: "Row") -> list[str]:
    counts = ", ".join(f"{count} {name}" for name, count in row.ops.items() if count)
    error = f"error {row.worst:.2f} of what is allowed" if row.errors else ""
    unfused = f"op by op: {' '.join(row.unfused)}" if row.unfused else ""
    native = "" if row.native is None else f"{row.native:.1%} native"
    facts = "; ".join(part for part in (row.reason, native, counts, error, unfused) if part)
    return [f"{row.family:<24} {row.verdict:<26} {row.seconds:6.1f} s  {facts}"]
