"""Files of llmc's cache, put in place at once."""

import tempfile
from pathlib import Path

from llmc.errors import BadOption


def put(path: Path, content: bytes) -> None:
    """Write a file: who reads it finds what was there before, or the whole content; a failure leaves no trace.

    Raises BadOption if it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False)  # noqa: SIM115
        try:
            with partial:
                partial.write(content)
            Path(partial.name).replace(path)
        except BaseException:
            Path(partial.name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BadOption(
            f"cache: {path}: {error.strerror or error}; set LLMC_CACHE to a directory that can be written"
        ) from error
