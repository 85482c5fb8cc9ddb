"""The table of the commands."""

from collections.abc import Callable
from typing import Annotated

import typer

from llmc.cli import bench, commands, look, tune

COMMANDS: dict[str, Callable[..., None]] = {
    "build": commands.build,
    "run": commands.run,
    "inspect": look.inspect,
    "explain": look.explain,
    "bench": bench.bench,
    "tune": tune.tune,
    "verify": commands.verify,
    "bisect": commands.bisect,
    "zoo": look.zoo,
    "doctor": look.doctor,
}
"""The commands, in the order in which `llmc --help` shows them."""


def make_app() -> typer.Typer:
    """The command line, ready to be called."""
    app = typer.Typer(
        name="llmc",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(llmc)
    for name, command in COMMANDS.items():
        app.command(name)(command)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from llmc import __version__

        print(f"llmc {__version__}")
        raise typer.Exit


def llmc(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compile a transformer model into an artifact, run it, and see what was done to it.

    Exit codes: 0 done, 1 the work failed, 2 usage, 3 artifact rejected, 4 environment lacks something,
    5 numbers differ too much, 130 interrupted.
    """
