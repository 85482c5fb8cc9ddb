"""The command `llmc tune`."""

from typing import Annotated

import typer

from llmc.cli.parameters import ArtifactDirectory, Json, Quiet, Traceback
from llmc.errors import BadOption


def tune(
    directory: ArtifactDirectory,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Repetitions of each step.")] = 5,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Default: all cores.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only measure.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Measure from how many rows on the other forms of each linear are faster on this machine, and keep that.

    What is found is used by every artifact with linears of these shapes that is loaded here with as many threads; it
    is kept in llmc's cache. Results stay the same to the bit; only speed changes.

    Example: llmc tune smollm2.llmc
    """
    from llmc.bench.tune import NEVER, measure
    from llmc.cli import output as out
    from llmc.loading import load
    from llmc.options import cache_directory
    from llmc.runtime.cpu_program import CpuProgram
    from llmc.runtime.tuning import write_tuning

    program = load(directory, threads=threads, tuned=False).session.program
    if not isinstance(program, CpuProgram):
        raise BadOption(f"tune: {directory} holds no native program; build it with --program cpu")
    table = measure(program, repetitions, lambda text: None if quiet else out.print_note(text))
    program.close()
    if not dry_run:
        write_tuning(cache_directory(), program.threads, table)
    if json:
        out.print_json({"artifact": str(directory), "written": not dry_run, "crossovers": table})
        return
    rows = [[name, *("never" if rows == NEVER else str(rows) for rows in pair)] for name, pair in table.items()]
    out.print_table(["linear", "flat from", "gemm from"], rows)
