"""The commands that look: inspect, explain, doctor, zoo."""

from pathlib import Path
from typing import Annotated

import typer

from llmc.cli.parameters import ArtifactDirectory, Json, Traceback


def inspect(directory: ArtifactDirectory, json: Json = False, traceback: Traceback = False) -> None:
    """Show what an artifact holds: model, options, ranges, programs, passes, files.

    Example: llmc inspect smollm2.llmc
    """
    from llmc.cli import output as out
    from llmc.cli.reports import manifest_summary

    manifest = _manifest(directory)
    if json:
        out.print_json({"artifact": str(directory), "manifest": manifest})
        return
    out.print_lines(manifest_summary(str(directory), manifest))


def explain(
    directory: ArtifactDirectory,
    op: Annotated[
        str | None, typer.Argument(metavar="[OP]", help="Only what concerns this op, rule or module.")
    ] = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show what was fused, what was not, and why.

    Example: llmc explain smollm2.llmc fuse_qkv
    """
    from llmc.cli import output as out
    from llmc.cli.explanation import explain as explain_manifest

    found = explain_manifest(_manifest(directory), op)
    if json:
        out.print_json({"artifact": str(directory), "op": op, **found.to_json()})
        return
    out.print_lines(found.lines())


def doctor(json: Json = False, traceback: Traceback = False) -> None:
    """Show what this machine offers llmc, to paste into a report.

    Ends in 4 if a package that llmc needs is missing or too old.
    """
    from llmc.cli import output as out
    from llmc.cli.exit_codes import ENVIRONMENT
    from llmc.cli.reports import examination_lines
    from llmc.doctor import examine

    found = examine()
    if json:
        out.print_json(found.to_json())
    else:
        out.print_lines(examination_lines(found))
    if found.missing:
        names = ", ".join(f"{package.name}{package.required}" for package in found.missing)
        out.print_error(f"not installed, or of another version: {names}; install with `pip install llmc`")
        raise typer.Exit(ENVIRONMENT)


def zoo(
    family: Annotated[
        list[str] | None, typer.Argument(metavar="[FAMILY]...", help="Families; default: all that transformers maps.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time limit of one family.")] = 300.0,
    names: Annotated[bool, typer.Option("--list", help="Only print the names of the families.")] = False,
    no_prove: Annotated[
        bool, typer.Option("--no-prove", help="Do not test each rewrite on the subgraph it replaces.")
    ] = False,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Compile a tiny random model of each causal-LM family and check its logits against eager torch.

    Ends in 1 if a family fails; that llmc refuses a family, and says why, is no failure.

    Example: llmc zoo llama gemma3_text mixtral
    """
    from llmc.cli.zoo_table import show

    if not show(family or (), seconds=seconds, names_only=names, prove=not no_prove, json=json):
        raise typer.Exit(1)


def _manifest(directory: Path) -> dict[str, object]:
    """The manifest of an artifact; raises ArtifactRejected."""
    from llmc.runtime.artifact import Artifact

    return dict(Artifact.open(directory, verify="fast").manifest.content)
