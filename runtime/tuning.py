"""What was measured of this machine: from how many rows on each linear runs in its flat and in its GEMM form.

Kept in llmc's cache, not in artifacts: an artifact stays as it was built, and a linear of one shape and format is the
same in every model. Which form computes a value does not change its bits, so a table that fits badly costs time only.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from llmc.errors import ArtifactRejected
from llmc.runtime.checked_json import Field, parse
from llmc.runtime.cpu_features import processor_name

Crossovers = dict[str, tuple[int, int]]
"""For linears such as "960x576:int4" the rows from which the flat form is used, and the GEMM."""
_MOST = 1 << 30


def read_tuning(cache: Path, threads: int) -> Crossovers:
    """What was measured on this processor with so many threads; empty if nothing was, or the file is damaged."""
    try:
        tables = dict(parse(_file(cache).read_bytes(), "tuning").entries(1024))
        table = tables.get(_key(threads))
        return {} if table is None else {name: _pair(item) for name, item in table.entries(100_000)}
    except (OSError, ArtifactRejected):
        return {}


def write_tuning(cache: Path, threads: int, table: Mapping[str, tuple[int, int]]) -> None:
    """Keep what was measured on this processor with so many threads, beside what is known of other linears."""
    path = _file(cache)
    try:
        known = parse(path.read_bytes(), "tuning").value
    except (OSError, ArtifactRejected):
        known = {}
    tables = known if isinstance(known, dict) else {}
    former = tables.get(_key(threads))
    merged = {**(former if isinstance(former, dict) else {}), **{name: list(pair) for name, pair in table.items()}}
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=cache, prefix=".tuning-", delete=False) as file:
        json.dump({**tables, _key(threads): merged}, file, indent=1, sort_keys=True)
    os.replace(file.name, path)  # noqa: PTH105 - a name, not a path


def _file(cache: Path) -> Path:
    return cache / "tuning.json"


def _key(threads: int) -> str:
    return f"{processor_name()}, {threads} threads"


def _pair(field: Field) -> tuple[int, int]:
    numbers = [item.integer(0, _MOST) for item in field.items(2)]
    if len(numbers) != 2:
        field.reject("a list of two integers")
    return numbers[0], numbers[1]
