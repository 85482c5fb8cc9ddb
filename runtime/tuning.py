"""What was measured of this machine: from how many rows on the variants of each linear are used, and on GPUs over how
many programs attentions divide their keys.

Kept in llmc's cache, not in artifacts: an artifact stays as it was built, and a linear of one shape and format is the
same in every model. On CPUs the variant does not change a value's bits, so a table that fits badly costs time only.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from llmc.errors import ArtifactRejected, BadOption
from llmc.runtime.cache_file import put
from llmc.runtime.checked_json import Field, parse
from llmc.runtime.cpu_features import processor_name
from llmc.runtime.shares import Tuned, read_tuned

Crossovers = dict[str, tuple[int, int]]
"""For linears such as "960x576:int4" the rows from which the flat form is used, and the GEMM."""
_MOST = 1 << 30

_Entry = TypeVar("_Entry")


def read_tuning(cache: Path, threads: int) -> Crossovers:
    """What was measured on this processor with so many threads; empty if nothing was, or the file is damaged."""
    try:
        return _read(cache, _processor(threads), _pair)
    except ArtifactRejected:
        return {}


def write_tuning(cache: Path, threads: int, table: Mapping[str, tuple[int, int]]) -> None:
    """Keep what was measured on this processor with so many threads, beside what is known of other linears.

    Raises BadOption if the cache cannot be written.
    """
    _write(cache, _processor(threads), {name: list(pair) for name, pair in table.items()})


def read_gpu_tuning(cache: Path, gpu: str) -> dict[str, Tuned]:
    """What was measured on GPUs of a kind (see `llmc.runtime.cuda.driver.Gpu.kind`); empty if nothing was.

    Raises BadOption if the file is damaged, or crossovers are out of order.
    """
    try:
        return _read(cache, gpu, read_tuned)
    except ArtifactRejected as error:
        found = str(error).removesuffix("; build the artifact again")
        raise BadOption(f"{_file(cache)}: {found}; remove the file, and run `llmc tune` again") from None


def write_gpu_tuning(cache: Path, gpu: str, table: Mapping[str, Tuned]) -> None:
    """Keep what was measured on GPUs of a kind, beside what is known of other linears and attentions.

    Raises BadOption if the cache cannot be written.
    """
    _write(cache, gpu, {name: asdict(tuned) for name, tuned in table.items()})


def _read(cache: Path, machine: str, entry: Callable[[Field], _Entry]) -> dict[str, _Entry]:
    """The table of a machine; empty if there is none. Raises ArtifactRejected."""
    try:
        content = _file(cache).read_bytes()
    except OSError:
        return {}
    table = dict(parse(content, "tuning").entries(1024)).get(machine)
    return {} if table is None else {name: entry(item) for name, item in table.entries(100_000)}


def _write(cache: Path, machine: str, table: Mapping[str, object]) -> None:
    path = _file(cache)
    try:
        known = parse(path.read_bytes(), "tuning").value
    except (OSError, ArtifactRejected):
        known = {}
    tables = known if isinstance(known, dict) else {}
    former = tables.get(machine)
    merged = {**(former if isinstance(former, dict) else {}), **table}
    put(path, json.dumps({**tables, machine: merged}, indent=1, sort_keys=True).encode())


def _file(cache: Path) -> Path:
    return cache / "tuning.json"


def _processor(threads: int) -> str:
    return f"{processor_name()}, {threads} threads"


def _pair(field: Field) -> tuple[int, int]:
    numbers = [item.integer(0, _MOST) for item in field.items(2)]
    if len(numbers) != 2:
        field.reject("a list of two integers")
    return numbers[0], numbers[1]
