"""What the exit codes of `llmc` mean, and which error ends in which; nowhere else."""

import errno

from llmc import errors

OK = 0
FAILED = 1
USAGE = 2
REJECTED = 3
ENVIRONMENT = 4
NUMERICS = 5
INTERRUPTED = 130

MEANING = {
    OK: "done",
    FAILED: "the work failed: the model cannot be compiled, a file is damaged, or llmc has a bug",
    USAGE: "the command line or the request asks for something that does not exist",
    REJECTED: "the artifact is damaged, incomplete, altered, or of a version that this llmc does not read",
    ENVIRONMENT: "the environment lacks something: a package, a compiler, memory, a GPU that works",
    NUMERICS: "the compiled model differs from its source by more than it may",
    INTERRUPTED: "interrupted from the keyboard",
}

BY_ERROR: dict[type[BaseException], int] = {
    errors.BadOption: USAGE,
    errors.BadRequest: USAGE,
    errors.ArtifactRejected: REJECTED,
    errors.MissingTool: ENVIRONMENT,
    errors.DeviceFailed: ENVIRONMENT,
    MemoryError: ENVIRONMENT,
    errors.NumericsGateFailed: NUMERICS,
    ModuleNotFoundError: ENVIRONMENT,
    KeyboardInterrupt: INTERRUPTED,
}
"""The errors that do not end in 1."""


def exit_code(error: BaseException) -> int:
    """The exit code that `error` ends in."""
    for kind in type(error).__mro__:
        if kind in BY_ERROR:
            return BY_ERROR[kind]
    return FAILED


def explain(error: BaseException) -> str:
    """The line that says what went wrong: lower case, with the way out."""
    if isinstance(error, errors.LlmcError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, ModuleNotFoundError):
        return f"package {error.name} is not installed; see `llmc doctor`, and install with `pip install llmc`"
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or serve a shorter context with --max-context"
    if isinstance(error, OSError) and error.strerror is not None and error.errno != errno.EPIPE:
        return f"{error.filename or 'file'}: {error.strerror.lower()}"
    return f"internal error, a bug in llmc: {type(error).__name__}: {error}; --traceback shows where"
