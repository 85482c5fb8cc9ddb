"""The commands of `llmc`: what each takes, and which part of llmc does the work."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from llmc.errors import BadOption

app = typer.Typer(
    name="llmc",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face directory or a .gguf file.")]
ArtifactDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact that `llmc build` made.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="On an error, show where in llmc it was raised.")]
Dtype = Annotated[str | None, typer.Option(metavar="DTYPE", help="float32, float16 or bfloat16; default: the model's.")]
MaxContext = Annotated[int | None, typer.Option(help="Longest sequence to serve, in tokens; default: the model's.")]
Dump = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write the graph after each pass that changes it. [LLMC_DUMP]")
]


def _version(wanted: bool) -> None:
    if wanted:
        from llmc import __version__

        print(f"llmc {__version__}")
        raise typer.Exit


@app.callback()
def llmc(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compile a transformer model into an artifact, run it, and see what was done to it.

    Exit codes: 0 done, 1 the work failed, 2 usage, 3 artifact rejected, 4 environment lacks something,
    5 numbers differ too much, 130 interrupted.
    """


@app.command("build")
def build(
    model: Source,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write the artifact.")],
    dtype: Dtype = None,
    max_context: MaxContext = None,
    no_prove: Annotated[
        bool, typer.Option("--no-prove", help="Do not test each rewrite on the subgraph it replaces.")
    ] = False,
    dump: Dump = None,
    stop_after: Annotated[
        int | None, typer.Option(metavar="N", help="Perform only the first N rewrites. [LLMC_STOP_AFTER]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DIR if it is an artifact.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Compile MODEL into an artifact.

    Example: llmc build models/SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2.llmc
    """
    from llmc.cli import output as out
    from llmc.cli.progress import PhaseProgress
    from llmc.cli.reports import build_summary
    from llmc.options import Options

    options = Options.read(dtype=dtype, max_context=max_context, prove=not no_prove, dump=dump, stop_after=stop_after)
    _check_model(model)
    _check_output(output, force)
    began = time.perf_counter()
    with PhaseProgress(quiet=quiet) as progress:
        from llmc import driver

        compiled = driver.compile(
            model,
            dtype=options.dtype,
            max_context=options.max_context,
            prove=options.prove,
            dump=None if options.dump is None else str(options.dump),
            stop_after=options.stop_after,
            progress=progress,
        )
        saving = time.perf_counter()
        progress("save", None, {})
        compiled.save(output, force=force)
        files = [path for path in output.rglob("*") if path.is_file()]
        written = sum(path.stat().st_size for path in files)
        progress("save", time.perf_counter() - saving, {"files": len(files), "bytes": written})
    seconds = time.perf_counter() - began
    if json:
        out.print_json(
            {
                "artifact": str(output),
                "bytes": written,
                "files": len(files),
                "seconds": seconds,
                "phases": progress.phases,
                "report": compiled.report,
            }
        )
        return
    out.print_lines(build_summary(str(output), compiled.report, written, seconds))


@app.command("run")
def run(
    directory: ArtifactDirectory,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; `-` reads stdin.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Send PROMPT as a user's message, by the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the K likeliest tokens; 0 takes all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens that sum to P.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Leave out tokens less likely than P times the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, what was said becomes less likely.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Make sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given again.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Trust the artifact's weights without hashing them.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Generate text from PROMPT; it streams to stdout.

    Example: llmc run smollm2.llmc --chat "What is the capital of France?"
    """
    from llmc.cli import output as out
    from llmc.runtime.sample import SamplingParams

    sampling = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    from llmc import driver

    began = time.perf_counter()
    model = driver.load(directory, verify="fast" if fast else "full")
    loaded = time.perf_counter()
    session = model.session
    prompts = [session.encode_chat([{"role": "user", "content": text}])] if chat else [text]
    made = []
    for increment in session.stream(prompts, sampling):
        made.append(increment)
        if not json:
            sys.stdout.write(increment.text)
            sys.stdout.flush()
    seconds = time.perf_counter() - loaded
    if json:
        out.print_json(
            {
                "prompt": text,
                "text": "".join(increment.text for increment in made),
                "token_ids": [increment.token_id for increment in made],
                "finish_reason": made[-1].finish_reason,
                "load_seconds": loaded - began,
                "generate_seconds": seconds,
            }
        )
        return
    print()
    if not quiet:
        rate = f"{len(made)} tokens in {out.duration(seconds)}, {len(made) / seconds:.1f} tokens/s"
        out.print_note(f"loaded in {out.duration(loaded - began)}; {rate} with the prompt")


@app.command("inspect")
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


@app.command("explain")
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


@app.command("verify")
def verify(
    directory: ArtifactDirectory,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Also compare its logits with those of this source model.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Check every byte of an artifact, and with --against that it computes what its source computes.

    Ends in 3 if the artifact is damaged, in 5 if the numbers differ by more than they may.

    Example: llmc verify smollm2.llmc --against models/SmolLM2-135M-Instruct.Q4_1.gguf
    """
    from llmc.cli import output as out
    from llmc.cli.reports import comparison_lines
    from llmc.runtime.artifact import Artifact

    if against is not None:
        _check_model(against)
    began = time.perf_counter()
    files = Artifact.open(directory, verify="full").manifest.files
    total = sum(record.bytes for record in files.values())
    seconds = time.perf_counter() - began
    if not (json or quiet):
        out.print_lines([f"{directory}: {len(files)} files intact, {out.size(total)} in {out.duration(seconds)}"])
    comparison = None
    if against is not None:
        from llmc.compare import compare_artifact

        _hide_progress_bars()
        comparison = compare_artifact(directory, against)
        if not (json or quiet):
            out.print_lines(comparison_lines(comparison))
    if json:
        from dataclasses import asdict

        compared = None if comparison is None else {**asdict(comparison), "passed": comparison.passed}
        out.print_json({"artifact": str(directory), "files": len(files), "bytes": total, "comparison": compared})
    if comparison is not None and not comparison.passed:
        from llmc.cli.exit_codes import NUMERICS

        out.print_error(comparison.verdict(str(directory)))
        raise typer.Exit(NUMERICS)


@app.command("bisect")
def bisect(
    model: Source,
    dtype: Dtype = None,
    json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Find the first rewrite that makes MODEL compute something else than its source.

    Compiles it again and again, with ever fewer rewrites. Ends in 5 if there is such a rewrite.

    Example: llmc bisect models/SmolLM2-135M-Instruct.Q4_1.gguf
    """
    from llmc.cli import output as out
    from llmc.cli.exit_codes import NUMERICS
    from llmc.cli.progress import PhaseProgress
    from llmc.options import Options

    _check_model(model)
    options = Options.read(dtype=dtype)
    with PhaseProgress(quiet=quiet) as progress:
        from llmc.bisect_model import bisect_model

        _hide_progress_bars()
        found = bisect_model(model, dtype=options.dtype, progress=progress)
    bad = found.first_bad
    if json:
        from dataclasses import asdict

        record = None if bad is None else asdict(bad)
        out.print_json({"model": model, "rewrites": found.rewrites, "builds": found.builds, "first_bad": record})
    elif bad is None:
        out.print_lines([f"no bad rewrite: the model computes what its source does with all {found.rewrites}"])
    else:
        where = f"#{bad.number} {bad.rule} at {bad.node} ({bad.origin})"
        out.print_lines([f"first bad rewrite: {where}", f"all before it are good: LLMC_STOP_AFTER={bad.number - 1}"])
    if bad is not None:
        raise typer.Exit(NUMERICS)


@app.command("zoo")
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


@app.command("doctor")
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


def _hide_progress_bars() -> None:
    """Keep transformers from drawing on stderr."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _manifest(directory: Path) -> dict[str, object]:
    """The manifest of an artifact; raises ArtifactRejected."""
    from llmc.runtime.artifact import Artifact

    return dict(Artifact.open(directory, verify="fast").manifest.content)


def _check_model(model: str) -> None:
    """Raise BadOption, with the nearest name there is, if there is no `model`."""
    import difflib

    path = Path(model)
    if path.exists():
        return
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    if near:
        hint = f"did you mean {path.parent / near[0]}"
    elif len(path.parts) == 2:
        hint = f"llmc downloads nothing; `hf download {model} --local-dir {path.name}` does"
    else:
        hint = "name a Hugging Face directory or a .gguf file"
    raise BadOption(f"model: {model} does not exist; {hint}")


def _check_output(output: Path, force: bool) -> None:
    """Raise BadOption before the work begins if the artifact could not be written at its end."""
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / "manifest.json").is_file()):
        raise BadOption(f"output: {output} exists and is not an artifact; choose another name")
    if not force and any(output.iterdir()):
        raise BadOption(f"output: {output} exists; choose another name, or replace it with --force")
