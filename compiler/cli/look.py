"""The commands that look: inspect, explain, doctor, zoo."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmc.cli.parameters import ArtifactDirectory, Json, Threads, Traceback, Trust
from llmc.errors import BadOption

if TYPE_CHECKING:
    from llmc.codegen.explanation import ProgramExplanation
    from llmc.runtime.artifact import Artifact
    from llmc.runtime.crossover import Crossover
    from llmc.runtime.shares import Shares


def inspect(
    directory: ArtifactDirectory,
    launches: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Show the launches of the program for a GPU, such as sm_90.")
    ] = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show what an artifact holds: model, options, ranges, programs, passes, files.

    Example: llmc inspect smollm2.llmc
    """
    from llmc.cli import output as out
    from llmc.cli.reports import manifest_summary

    if launches is not None:
        columns, rows = _launches(directory, launches)
        if json:
            rows_json = [dict(zip(columns, row, strict=True)) for row in rows]
            out.print_json({"artifact": str(directory), "target": launches, "launches": rows_json})
        else:
            out.print_table(columns, rows)
        return
    manifest = _manifest(directory)
    if json:
        out.print_json({"artifact": str(directory), "manifest": manifest})
        return
    out.print_lines(manifest_summary(str(directory), manifest))


def explain(
    directory: ArtifactDirectory,
    op: Annotated[
        str | None,
        typer.Argument(metavar="[OP]", help="Only what concerns this op, rule, module, region or kernel."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run the native program and show what its regions take here.")
    ] = False,
    threads: Threads = None,
    trust: Trust = False,
    target: Annotated[
        str, typer.Option(metavar="TARGET", help="Whose program: cpu, or a GPU that it was built for, such as sm_90.")
    ] = "cpu",
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show what was fused, what was not, and why; which kernels run, at what cost, and why not others.

    Example: llmc explain smollm2.llmc fuse_qkv
    """
    from llmc.cli import kernels
    from llmc.cli import output as out
    from llmc.cli.explanation import explain as explain_manifest
    from llmc.cli.reports import length_lines
    from llmc.runtime.artifact import Artifact

    artifact = Artifact.open(directory, verify="fast")
    program, crossovers, shares = (
        (_program(artifact, threads), {}, {}) if target == "cpu" else _gpu_program(artifact, target)
    )
    if measure and target != "cpu":
        raise BadOption(f"measure: regions of {target} are not measured; use --target cpu, or llmc bench on the GPU")
    if measure:
        program = _measured(artifact, program, threads=threads, trust=trust)
    if program is not None and op is not None:
        program = program.concerning(op)
    shown = program is not None and bool(program.regions)
    found = explain_manifest(dict(artifact.manifest.content), op, elsewhere=shown)
    if json:
        plain = program.to_json() if program is not None and shown else None
        tables = (
            {"crossovers": {name: asdict(crossover) for name, crossover in crossovers.items()}} if crossovers else {}
        )
        tables |= {"shares": {name: asdict(each) for name, each in shares.items()}} if shares else {}
        out.print_json({"artifact": str(directory), "op": op, **found.to_json(), "program": plain, **tables})
        return
    out.print_lines(found.lines())
    report = artifact.manifest.report.get("lengths")
    if op is None and isinstance(report, dict):
        out.print_lines(length_lines(report))
    if program is None or not shown:
        return
    out.print_lines(kernels.heading(program))
    out.print_table(*kernels.table(program))
    if crossovers:
        out.print_lines([""])
        out.print_table(*kernels.crossovers(program, crossovers))
    if shares and any(kernel.kind == "attention" for kernel in program.kernels):
        out.print_lines([""])
        out.print_table(*kernels.shares(shares))
    if op is not None:
        out.print_lines(kernels.reasons(program))


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


def _program(artifact: "Artifact", threads: int | None) -> "ProgramExplanation | None":
    """What the artifact says of its native program, with what was tuned here; None if it has none, or says nothing.

    Raises ArtifactRejected.
    """
    from llmc.codegen.explanation import ProgramExplanation
    from llmc.options import cache_directory
    from llmc.runtime.cpu_features import usable_cpus
    from llmc.runtime.crossover import Crossover
    from llmc.runtime.tuning import read_tuning

    name = artifact.manifest.programs.get("cpu", {}).get("explanation")
    if name is None:
        return None
    found = read_tuning(cache_directory(), threads or len(usable_cpus()))
    table = {name: Crossover(min(flat, gemm), gemm, "measured by `llmc tune`") for name, (flat, gemm) in found.items()}
    return ProgramExplanation.from_json(artifact.read(name)).with_crossovers(table)


def _gpu_program(
    artifact: "Artifact", target: str
) -> "tuple[ProgramExplanation, Mapping[str, Crossover], Mapping[str, Shares]]":
    """What the artifact says of its program for a GPU, its crossovers and shares: those that were tuned, if this
    machine has such a GPU. Raises BadOption if there is no such program, and ArtifactRejected.
    """
    from llmc.codegen.explanation import ProgramExplanation
    from llmc.options import cache_directory
    from llmc.runtime.cuda.open_session import read_choices

    name = _gpu_roles(artifact, target).get(f"{target}.explanation")
    if name is None:
        raise BadOption(f"target: {artifact.root} says nothing of its program for {target}; build it again")
    crossovers, shares = read_choices(artifact, target, cache_directory())
    return ProgramExplanation.from_json(artifact.read(name)).with_crossovers(crossovers), crossovers, shares


def _gpu_roles(artifact: "Artifact", target: str) -> "Mapping[str, str]":
    """Files of programs for GPUs by role. Raises BadOption if there is none for this target."""
    roles = artifact.manifest.programs.get("cuda", {})
    if target not in roles or "." in target:
        cpu = ["cpu"] if "cpu" in artifact.manifest.programs else []
        held = ", ".join([*cpu, *(role for role in roles if "." not in role)]) or "no target"
        raise BadOption(f"target: {artifact.root} holds no program for {target}; it holds those for {held}")
    return roles


def _launches(directory: Path, target: str) -> tuple[list[str], list[list[object]]]:
    from llmc.cli import launches
    from llmc.runtime.artifact import Artifact
    from llmc.runtime.cuda.open_session import read_plan

    artifact = Artifact.open(directory, verify="fast")
    _gpu_roles(artifact, target)
    return launches.table(read_plan(artifact, target).plan)


def _measured(
    artifact: "Artifact", program: "ProgramExplanation | None", *, threads: int | None, trust: bool
) -> "ProgramExplanation":
    from llmc.loading import load
    from llmc.measure_regions import measured
    from llmc.runtime.cpu_program import CpuProgram

    if program is None:
        raise BadOption(f"measure: {artifact.root} holds no native program; build it with --program cpu")
    running = load(artifact.root, verify="fast", program="cpu", threads=threads, trust=trust).session.program
    assert isinstance(running, CpuProgram), "that is what was asked for"
    return measured(program, running, artifact.manifest.ranges)


def _manifest(directory: Path) -> dict[str, object]:
    """The manifest of an artifact; raises ArtifactRejected."""
    from llmc.runtime.artifact import Artifact

    return dict(Artifact.open(directory, verify="fast").manifest.content)
