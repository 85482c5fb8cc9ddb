"""The command line, `llmc`. Data goes to stdout, progress and errors to stderr; exit codes are in `exit_codes`.

Nothing here imports torch, transformers or numpy before a command needs them, so that `llmc --help` is immediate.
"""

import os
import sys
import warnings
from collections.abc import Sequence

from llmc.cli import exit_codes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `llmc` with `arguments` (those of the process, when None) and return its exit code."""
    import typer

    from llmc.cli.app import make_app

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries tell developers; `python -W default -m llmc` shows it
    try:
        code = make_app()(arguments, prog_name="llmc", standalone_mode=False)
        sys.stdout.flush()
        if code == exit_codes.INTERRUPTED:  # typer turns the interrupt into this
            raise KeyboardInterrupt
        return code if isinstance(code, int) else exit_codes.OK
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read our output has gone; nobody is left to tell
        return exit_codes.FAILED
    except typer.TyperException as error:
        return _report(error, _usage(error.format_message(), flags), exit_codes.USAGE, flags)
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, exit_codes.explain(error), exit_codes.exit_code(error), flags)


def _usage(message: str, flags: list[str]) -> str:
    """A message of the option parser in our own manner."""
    from llmc.cli.app import COMMANDS

    message = " ".join(message.split()).rstrip(".?") or "no command given"
    message = message.replace("'. Did you", "'; did you").replace(" (Possible options: ", "; possible options: ")
    command = next((flag for flag in flags if flag in COMMANDS), "")
    return f"{message[:1].lower()}{message[1:].rstrip(')')}; see `{' '.join(['llmc', command]).strip()} --help`"


def _report(error: BaseException, message: str, code: int, flags: list[str]) -> int:
    from llmc.cli.output import print_error, print_json

    if "--traceback" in flags:
        import traceback

        traceback.print_exception(error)
    print_error(message)
    if "--json" in flags:
        print_json({"error": {"kind": type(error).__name__, "message": message, "exit_code": code}})
    return code
