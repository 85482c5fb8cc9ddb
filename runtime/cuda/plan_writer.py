"""A launch plan as the values of a JSON document, of which `llmc.runtime.cuda.plan_file` says what they mean."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple
from typing import Generic, TypeVar

from llmc.runtime.cuda.code_file import Binary, Section
from llmc.runtime.cuda.plan import Argument, Candidate, Extent, Launch, Plan, Product, When

_T = TypeVar("_T")
Json = dict[str, object]


class _Table(Generic[_T]):
    """Different values in the order in which they first occurred; each is named by its place."""

    def __init__(self) -> None:
        self._places: dict[_T, int] = {}

    def place(self, value: _T) -> int:
        return self._places.setdefault(value, len(self._places))

    def __iter__(self) -> Iterator[_T]:
        return iter(self._places)


_Call = tuple[str, tuple[Extent, Extent, Extent], When, Candidate | None]
_Form = tuple[str, int, int, int, str, When, Candidate | None]


class _Writer:
    def __init__(self) -> None:
        self.arguments = _Table[Argument]()
        self.calls = _Table[_Call]()
        self.products = _Table[_Form]()

    def call(self, launch: Launch) -> int:
        return self.calls.place((launch.kernel, launch.grid, launch.when, launch.candidate))

    def given(self, arguments: Iterable[Argument]) -> list[int]:
        return [self.arguments.place(argument) for argument in arguments]

    def launches(self, launches: Iterable[Launch | Product]) -> list[list[int]]:
        """A row for each. Those of products are told by negative places: -1 is the first product."""
        rows = []
        for launch in launches:
            if isinstance(launch, Product):
                form = (
                    launch.dtype, launch.n, launch.k, launch.stride, launch.rows, launch.when, launch.candidate,
                )  # fmt: skip
                place = -1 - self.products.place(form)
            else:
                place = self.call(launch)
            rows.append([place, launch.region, *self.given(launch.arguments)])
        return rows


def plain(plan: Plan) -> Json:
    """A plan as plain values."""
    writer = _Writer()
    sizes = dict(zip(plan.weights, plan.weight_bytes, strict=True))
    places = {name: place for place, name in enumerate(sizes)}
    rearrangements = [
        [writer.call(each.launch), places[each.weight], each.bytes, *writer.given(each.launch.arguments)]
        for each in plan.rearrangements
    ]
    launches, sampling = writer.launches(plan.launches), writer.launches(plan.sampling)
    return {
        "target": plan.target,
        "vocabulary": plan.vocabulary,
        "block_size": plan.block_size,
        "arena_bytes_per_token": plan.arena_bytes_per_token,
        "kernels": [[k.name, dict(k.parameters), k.warps, k.stages, k.pdl] for k in plan.kernels],
        "weights": sizes,
        "caches": [list(astuple(cache)) for cache in plan.caches],
        "workspaces": [list(astuple(workspace)) for workspace in plan.workspaces],
        "crossovers": {name: asdict(crossover) for name, crossover in plan.crossovers.items()},
        "shares": {name: [shares.rule, shares.most] for name, shares in plan.shares.items()},
        "arguments": [list(astuple(argument)) for argument in writer.arguments],
        "calls": [
            [kernel, [_side(side) for side in grid], list(astuple(when)), _candidate(candidate)]
            for kernel, grid, when, candidate in writer.calls
        ],
        "products": [[*form, list(astuple(when)), _candidate(candidate)] for *form, when, candidate in writer.products],
        "rearrangements": rearrangements,
        "launches": launches,
        "sampling": sampling,
    }


def packed(section: Section, binaries: Mapping[str, Binary]) -> Json:
    """A section of code as plain values."""
    return {"section": list(astuple(section)), "kernels": {name: list(astuple(b)) for name, b in binaries.items()}}


def text(document: Json) -> bytes:
    """A document as JSON, with a line for each row of a table."""
    members = (f"{_line(name)}: {_rows(value)}" for name, value in document.items())
    return ("{\n" + ",\n".join(members) + "\n}\n").encode()


def _rows(value: object) -> str:
    if isinstance(value, dict) and value:
        return "{\n " + ",\n ".join(f"{_line(name)}: {_line(each)}" for name, each in value.items()) + "\n}"
    if isinstance(value, list) and value:
        return "[\n " + ",\n ".join(map(_line, value)) + "\n]"
    return _line(value)


def _line(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _side(extent: Extent) -> object:
    """A side that no size of a step changes is a number."""
    return extent.times if extent == Extent(times=extent.times) else list(astuple(extent))


def _candidate(candidate: Candidate | None) -> object:
    return None if candidate is None else list(astuple(candidate))
