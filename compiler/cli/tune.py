"""The command `llmc tune`."""

from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from llmc.cli.parameters import ArtifactDirectory, Json, Quiet, Traceback, Trust
from llmc.errors import BadOption

if TYPE_CHECKING:
    from llmc.runtime.cpu_program import CpuProgram
    from llmc.runtime.cuda.program import GpuProgram
    from llmc.runtime.manifest import Ranges


def tune(
    directory: ArtifactDirectory,
    device: Annotated[
        str | None, typer.Option(metavar="KIND", help="cpu or cuda; default: what the artifact would run on here.")
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Repetitions of each step.")] = 5,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Default: all cores.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only measure.")] = False,
    trust: Trust = False,
    json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Measure from how many rows on the other forms of each linear are faster on this machine, and keep that; on a GPU
    also over how many programs attention is to divide the keys of a decode step.

    What is found is used by every artifact with linears of these shapes that is loaded here, on as many threads or on a
    GPU of the same kind; it is kept in llmc's cache. On a CPU results stay the same to the bit; on a GPU the forms add
    up in different orders.

    Example: llmc tune smollm2.llmc
    """
    from llmc.cli import output as out
    from llmc.loading import load
    from llmc.runtime.cpu_program import CpuProgram
    from llmc.runtime.cuda.program import GpuProgram

    if device not in (None, "cpu", "cuda"):
        raise BadOption(f"device: {device!r} is no device; use cpu or cuda")
    if device == "cuda" and threads is not None:
        raise BadOption("threads: a GPU's program has none to choose; leave out --threads")
    session = load(directory, program=device, threads=threads, trust=trust, tuned=False).session
    program = session.program

    def progress(text: str) -> None:
        if not quiet:
            out.print_note(text)

    if isinstance(program, GpuProgram):
        document, columns, rows = _tune_gpu(program, session.ranges, repetitions, keep=not dry_run, progress=progress)
    elif isinstance(program, CpuProgram):
        document, columns, rows = _tune_cpu(program, repetitions, keep=not dry_run, progress=progress)
    else:
        raise BadOption(f"tune: {directory} holds no native program; build it with --program cpu, or with --target")
    if json:
        out.print_json({"artifact": str(directory), "written": not dry_run, **document})
        return
    out.print_table(columns, rows)


_Found = tuple[dict[str, object], list[str], list[list[object]]]
"""As plain values, and as columns and rows."""


def _tune_cpu(program: "CpuProgram", repetitions: int, *, keep: bool, progress: Callable[[str], None]) -> _Found:
    from llmc.bench.tune import NEVER, measure
    from llmc.options import cache_directory
    from llmc.runtime.tuning import write_tuning

    if keep:
        write_tuning(cache_directory(), program.threads, {})  # a cache that cannot be written is found at once
    table = measure(program, repetitions, progress)
    program.close()
    if keep:
        write_tuning(cache_directory(), program.threads, table)
    rows: list[list[object]] = [
        [name, *("never" if rows == NEVER else str(rows) for rows in pair)] for name, pair in table.items()
    ]
    return {"crossovers": table}, ["linear", "flat from", "gemm from"], rows


def _tune_gpu(
    program: "GpuProgram", ranges: "Ranges", repetitions: int, *, keep: bool, progress: Callable[[str], None]
) -> _Found:
    from llmc.bench.tune_gpu import measure
    from llmc.options import cache_directory
    from llmc.runtime.crossover import NEVER, VARIANTS
    from llmc.runtime.cuda.cuda_device import CudaDevice
    from llmc.runtime.tuning import write_gpu_tuning

    device = program.device
    assert isinstance(device, CudaDevice), "a program that was loaded runs on a GPU"
    source = f"measured on {device.gpu.name}, {date.today().isoformat()}"
    if keep:
        write_gpu_tuning(cache_directory(), device.gpu.kind, {})  # a cache that cannot be written is found at once
    tuned = measure(program, device, context=ranges.context, repetitions=repetitions, source=source, progress=progress)
    if keep:
        write_gpu_tuning(cache_directory(), device.gpu.kind, {**tuned.crossovers, **tuned.shares})
    rows: list[list[object]] = [
        [linear, *("never" if rows == NEVER else str(rows) for rows in crossover.starts[1:])]
        for linear, crossover in tuned.crossovers.items()
    ]
    rows += [
        [attention, f"over {programs} from {sequences} sequences on", "", ""]
        for attention, table in tuned.shares.items()
        for sequences, programs in table.starts
    ]
    first = "linear or attention" if tuned.shares else "linear"
    return tuned.to_json(), [first, *(f"{variant} from" for variant in VARIANTS[1:])], rows
