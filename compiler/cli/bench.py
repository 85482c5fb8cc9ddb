"""The command `llmc bench`."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmc.cli.parameters import ArtifactDirectory, Json, Quiet, Traceback, Trust
from llmc.errors import BadOption

if TYPE_CHECKING:
    from llmc.bench.tables import Table
    from llmc.bench.workloads import Workload


def bench(
    directory: ArtifactDirectory,
    device: Annotated[
        str, typer.Option(metavar="KIND", help="cpu, or cuda: its program for this machine's GPU.")
    ] = "cpu",
    prefill: Annotated[str, typer.Option("--prefill", "-p", metavar="N,...", help="Lengths of prompts.")] = "512",
    decode: Annotated[str, typer.Option("--decode", "-n", metavar="N,...", help="Numbers of decode steps.")] = "128",
    depth: Annotated[
        str, typer.Option("--depth", "-d", metavar="N,...", help="Decode with so many tokens in the cache.")
    ] = "2048",
    batch: Annotated[str, typer.Option("--batch", "-b", metavar="N,...", help="Decode so many sequences.")] = "8",
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Repetitions of each test.")] = 5,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Default: all cores.")] = None,
    against: Annotated[
        str,
        typer.Option(metavar="ENGINE,...", help="Also measure llama.cpp, openvino or ort; `llama.cpp:q8_0` a format."),
    ] = "",
    source: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hugging Face directory that the peers' models are made from.")
    ] = None,
    peer_python: Annotated[
        str, typer.Option(metavar="PATH", help="The Python in which the peers are installed; default: llmc's own.")
    ] = sys.executable,
    peer_models: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the peers' models are kept; default: llmc's cache.")
    ] = None,
    accuracy: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="Also compare logits on this text with fp32's of --source.")
    ] = None,
    trust: Trust = False,
    markdown: Annotated[bool, typer.Option("--md", help="Print the tables in Markdown.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Measure an artifact in llama-bench's terms, beside the limits of this machine and, with --against, its peers.

    pp512: tokens/s of a prompt. tg128: of decode steps after a short one. tg64@2048: the same with 2,048 tokens in the
    cache. b8: of 8 sequences together. Medians; engines take turns in every round, each in a process of its own. With
    --device cuda also each kernel of a decode step, beside what the GPU's memory can deliver.

    Example: llmc bench smollm2.llmc --against llama.cpp,ort --source SmolLM2-135M
    """
    from llmc.bench.peers import Contender
    from llmc.bench.runner import Plan, measure
    from llmc.bench.tables import machine_lines, tables
    from llmc.bench.workloads import workloads
    from llmc.cli import output as out
    from llmc.doctor import examine
    from llmc.options import cache_directory
    from llmc.runtime.artifact import Artifact

    if device not in ("cpu", "cuda"):
        raise BadOption(f"device: {device!r} is no device; use cpu or cuda")
    contenders = Contender.parse(against)
    if device == "cuda" and (contenders or accuracy):
        raise BadOption("device: peers and accuracy are measured on the CPU; leave out --against and --accuracy")
    if (contenders or accuracy) and source is None:
        raise BadOption("source: peers and accuracy need the model that DIR was built from; name it with --source")
    if source is not None and not (source / "config.json").is_file():
        raise BadOption(f"source: {source} is no Hugging Face directory; it has no config.json")
    context = Artifact.open(directory, verify="fast").manifest.ranges.context
    works = workloads(_sizes(prefill), _sizes(decode), _sizes(depth), _sizes(batch), context)
    if device == "cuda":
        _bench_gpu(directory, works, repetitions, trust=trust, markdown=markdown, json=json, quiet=quiet)
        return
    plan = Plan(
        artifact=directory,
        workloads=works,
        repetitions=repetitions,
        threads=threads or examine().processor.cores,
        contenders=contenders,
        peer_python=peer_python,
        source=source,
        peer_models=peer_models or (cache_directory() / "peers" / source.resolve().name if source else None),
        text=accuracy,
    )
    result = measure(plan, lambda text: None if quiet else out.print_note(text))
    if json:
        out.print_json(result.to_json())
        return
    _print(machine_lines(result), tables(result), markdown=markdown)


def _bench_gpu(
    directory: Path,
    works: "Sequence[Workload]",
    repetitions: int,
    *,
    trust: bool,
    markdown: bool,
    json: bool,
    quiet: bool,
) -> None:
    from llmc.bench.gpu import measure
    from llmc.cli import output as out

    result = measure(
        directory, works, repetitions, trust=trust, progress=lambda text: None if quiet else out.print_note(text)
    )
    if json:
        out.print_json(result.to_json())
    else:
        _print(result.lines(), result.tables(), markdown=markdown)


def _print(lines: "Iterable[str]", tables: "Sequence[Table]", *, markdown: bool) -> None:
    from llmc.cli import output as out

    out.print_lines(lines)
    for table in tables:
        out.print_lines([""])
        if markdown:
            out.print_lines(table.markdown())
        else:
            out.print_table(table.columns, table.rows, title=table.title)


def _sizes(text: str) -> list[int]:
    """The numbers of a list such as `128,512`; empty for `0` or nothing. Raises BadOption."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not all(item.isascii() and item.isdecimal() for item in items):
        raise BadOption(f"sizes: {text!r} is not a list of whole numbers such as 128,512")
    return [int(item) for item in items if int(item)]
