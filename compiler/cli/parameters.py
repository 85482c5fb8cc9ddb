"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face directory or a .gguf file.")]
ArtifactDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact that `llmc build` made.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="On an error, show where in llmc it was raised.")]
Dtype = Annotated[str | None, typer.Option(metavar="DTYPE", help="float32, float16 or bfloat16; default: the model's.")]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="Store weights as float, fp8, int8, int6, int4 (or int4:64, int4:128: so many share a scale), or keep the "
        "file's types; default: keep for .gguf.",
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        metavar="HOW", help="Store the projection to the logits otherwise; default beside int4: int6 or int8, by size."
    ),
]
KvDtype = Annotated[
    str | None,
    typer.Option(metavar="DTYPE", help="Keys and values in the cache: float32, float16, bfloat16, int8 or fp8."),
]
BuildProgram = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="cpu (native code) or reference (eager torch); default: cpu, with a compiler. [LLMC_PROGRAM]",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="cpu and GPUs, with commas between: cuda (the one that is here), sm_80, sm_89, sm_90, sm_100, gfx942; "
        "default: cpu.",
    ),
]
RunProgram = Annotated[
    str | None,
    typer.Option(
        metavar="KIND", help="cuda, cpu or reference; default: the first that runs here and is in the artifact."
    ),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="Threads of a native program; default: one for each CPU.")
]
Trust = Annotated[bool, typer.Option("--trust", help="Run native code that was not built on this machine.")]
MaxContext = Annotated[int | None, typer.Option(help="Longest sequence to serve, in tokens; default: the model's.")]
Dump = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write the graph after each pass that changes it. [LLMC_DUMP]")
]
