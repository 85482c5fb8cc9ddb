"""The commands that work: build, run, verify, bisect."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmc.cli.parameters import (
    ArtifactDirectory,
    BuildProgram,
    Dtype,
    Dump,
    Head,
    Json,
    KvDtype,
    MaxContext,
    Quantize,
    Quiet,
    RunProgram,
    Source,
    Target,
    Threads,
    Traceback,
    Trust,
)
from llmc.errors import BadOption, BadRequest

if TYPE_CHECKING:
    from llmc.runtime.session import Session


def build(
    model: Source,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write the artifact.")],
    dtype: Dtype = None,
    quantize: Quantize = None,
    head: Head = None,
    kv_dtype: KvDtype = None,
    program: BuildProgram = None,
    target: Target = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what has no native form.")] = False,
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

    options = Options.read(
        dtype=dtype,
        max_context=max_context,
        prove=not no_prove,
        dump=dump,
        stop_after=stop_after,
        quantize=quantize,
        head=head,
        kv_dtype=kv_dtype,
        program=program,
        strict=strict,
        target=target,
    )
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
            quantize=options.quantize,
            head=options.head,
            kv_dtype=options.kv_dtype,
            program=options.program,
            strict=options.strict,
            target=",".join(options.targets),
            progress=progress,
        )
        compiled.compile_program(progress)
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


def run(
    directory: ArtifactDirectory,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; `-` reads stdin.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Send PROMPT as a user's message, by the chat template.")
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many tokens; default: 128, or what fits the context.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the K likeliest tokens; 0 takes all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens that sum to P.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Leave out tokens less likely than P times the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, what was said becomes less likely.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Make sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given again.")] = None,
    program: RunProgram = None,
    threads: Threads = None,
    trust: Trust = False,
    fast: Annotated[bool, typer.Option("--fast", help="Take the artifact's weights as they are, unhashed.")] = False,
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
        max_new_tokens=max_new_tokens or 128,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    from llmc.loading import load

    began = time.perf_counter()
    model = load(directory, verify="fast" if fast else "full", program=program, threads=threads, trust=trust)
    loaded = time.perf_counter()
    session = model.session
    if model.passed_over and not quiet:
        out.print_note(model.passed_over)
    if session.tokenizer is None:
        raise BadRequest(f"run: {directory} holds no tokenizer, so it takes no text; use llmc.load and token ids")
    tokens = session.encode_chat([{"role": "user", "content": text}]) if chat else session.tokenizer.encode(text)
    if max_new_tokens is None:
        room = max(1, session.ranges.context - len(tokens))
        sampling = dataclasses.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
    made = []
    for increment in session.stream([tokens], sampling):
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
                "program": _kind(session),
                "passed_over": model.passed_over,
                "load_seconds": loaded - began,
                "generate_seconds": seconds,
            }
        )
        return
    print()
    if not quiet:
        rate = f"{len(made)} tokens in {out.duration(seconds)}, {len(made) / seconds:.1f} tokens/s"
        out.print_note(f"loaded in {out.duration(loaded - began)}; {rate} with the prompt, by {_kind(session)}")


def _kind(session: "Session") -> str:
    """The program that a session runs, as `--program` names it."""
    from llmc.runtime.cpu_program import CpuProgram
    from llmc.runtime.cuda.program import GpuProgram

    program = session.program
    return "cuda" if isinstance(program, GpuProgram) else "cpu" if isinstance(program, CpuProgram) else "reference"


def verify(
    directory: ArtifactDirectory,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Also compare its logits with those of this source model.")
    ] = None,
    program: RunProgram = None,
    trust: Trust = False,
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
    from llmc.options import RUN_PROGRAMS, check_program
    from llmc.runtime.artifact import Artifact

    check_program(program, RUN_PROGRAMS)
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
        comparison = compare_artifact(directory, against, program=program, trust=trust)
        if not (json or quiet):
            out.print_lines(comparison_lines(comparison))
    if json:
        compared = None if comparison is None else {**dataclasses.asdict(comparison), "passed": comparison.passed}
        out.print_json({"artifact": str(directory), "files": len(files), "bytes": total, "comparison": compared})
    if comparison is not None and not comparison.passed:
        from llmc.cli.exit_codes import NUMERICS

        out.print_error(comparison.verdict(str(directory)))
        raise typer.Exit(NUMERICS)


def bisect(
    model: Source,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="CHECK", help="What a good build meets, such as 'max error < 1e-3'; default: the promise."
        ),
    ] = None,
    dtype: Dtype = None,
    json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Find the first rewrite that makes MODEL compute something else than its source.

    Compiles it again and again, with ever fewer rewrites. Ends in 5 if there is such a rewrite. A check is one of
    `max error`, `rms error`, `kl` (against float64) or `top1` (share of equal likeliest tokens), `<` or `>`, a number.

    Example: llmc bisect models/SmolLM2-135M-Instruct.Q4_1.gguf --check "max error < 1e-3"
    """
    from llmc.cli import output as out
    from llmc.cli.exit_codes import NUMERICS
    from llmc.cli.progress import PhaseProgress
    from llmc.options import Options
    from llmc.threshold import Threshold

    _check_model(model)
    options = Options.read(dtype=dtype)
    threshold = None if check is None else Threshold.parse(check)
    with PhaseProgress(quiet=quiet) as progress:
        from llmc.bisect_model import bisect_model

        _hide_progress_bars()
        found = bisect_model(model, dtype=options.dtype, check=threshold, progress=progress)
    bad = found.first_bad
    if json:
        record = None if bad is None else dataclasses.asdict(bad)
        out.print_json({"model": model, "rewrites": found.rewrites, "builds": found.builds, "first_bad": record})
    elif bad is None:
        out.print_lines([f"no bad rewrite: the model computes what its source does with all {found.rewrites}"])
    else:
        where = f"#{bad.number} {bad.rule} at {bad.node} ({bad.origin})"
        out.print_lines([f"first bad rewrite: {where}", f"all before it are good: LLMC_STOP_AFTER={bad.number - 1}"])
    if bad is not None:
        raise typer.Exit(NUMERICS)


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


def _hide_progress_bars() -> None:
    """Keep transformers from drawing on stderr."""
    from transformers.utils import logging

    logging.disable_progress_bar()
