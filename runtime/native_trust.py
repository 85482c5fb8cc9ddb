"""Native code is code: which shared libraries may run without asking.

A library runs if this machine made it: then it lies in the user's own cache, under the SHA-256 of its bytes (see
`llmc.codegen.cpp.toolchain`, which puts it there). Any other library runs only when the caller says that it may.
"""

import hashlib
import os
import stat
from pathlib import Path


def library_folder(cache: Path) -> Path:
    """Where the libraries that this machine made are kept, given llmc's cache directory."""
    return cache / "native"


def library_path(cache: Path, sha256: str) -> Path:
    """Where the library with these bytes is kept."""
    return library_folder(cache) / f"{sha256}.so"


def built_here(cache: Path, sha256: str) -> Path | None:
    """The library with this hash among those that this machine made, its bytes checked; None if there is none.

    A folder that others may write to proves nothing, so what lies in such a one is not counted.
    """
    path = library_path(cache, sha256)
    try:
        if not all(_is_ours(place) for place in (path.parent, path)):
            return None
        return path if hashlib.sha256(path.read_bytes()).hexdigest() == sha256 else None
    except OSError:
        return None


def _is_ours(path: Path) -> bool:
    status = path.stat(follow_symlinks=False)
    return (
        not stat.S_ISLNK(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
