"""The tables of a plan's file, whose rows name by place what occurs often (see `llmc.runtime.cuda.plan_file`).

Rows of launches are many: what they may name is found once for each table, and then only compared.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, cast, get_args

from llmc.runtime.checked_json import Field
from llmc.runtime.crossover import VARIANTS
from llmc.runtime.cuda.plan import (
    CHOICE_ARRAYS,
    STEP_ARRAYS,
    Argument,
    ArgumentKind,
    Candidate,
    Extent,
    Kernel,
    Launch,
    Number,
    Product,
    Rearrangement,
    Symbol,
    When,
)

MOST_LAUNCHES, MOST_WEIGHTS, MOST_PARAMETERS, MOST_REGIONS = 100_000, 1_000_000, 256, 1 << 24
MOST_BYTES = 1 << 50
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")

_Call = tuple[Kernel, tuple[Extent, Extent, Extent], When, Candidate | None]
_Form = tuple[Number, int, int, int, Symbol, When, Candidate | None]
"""Rows of the tables of calls and of products."""


@dataclass(frozen=True)
class Place:
    """What launches may be, by where in a plan they stand."""

    kinds: tuple[ArgumentKind, ...]
    arrays: tuple[str, ...] = ()
    """Of a step that they are given."""
    symbols: tuple[str, ...] = get_args(Symbol)
    """Of their grids."""
    chosen: bool = False
    """Whether they may be products, and belong to a variant of a linear."""

    def takes(self, argument: Argument) -> bool:
        """Whether a launch may be given it there."""
        return argument.kind in self.kinds and (argument.kind != "step" or argument.name in self.arrays)

    def takes_call(self, call: _Call) -> bool:
        """Whether it may stand there."""
        _, grid, _, candidate = call
        symbols = {symbol for side in grid for symbol in (side.symbol, side.plus)}
        return symbols.issubset(self.symbols) and (candidate is None or self.chosen)


_NUMBERS = ("size", "shares")
"""Kinds of arguments that are numbers (int32), and no places."""
_IN_STEP = tuple(kind for kind in get_args(ArgumentKind) if kind not in ("source", "target"))
STEP = Place(_IN_STEP, STEP_ARRAYS, chosen=True)
CHOOSING = Place(_IN_STEP, STEP_ARRAYS + CHOICE_ARRAYS)
_REARRANGING = Place(("source", "target"), symbols=("",))
_MATRICES = ("weight", "workspace"), ("arena",), ("arena", "workspace", "logits")
"""Kinds of the arguments of a product: weight, inputs and sums."""


class Tables:
    """What the rows of launches name by place."""

    def __init__(
        self,
        members: Mapping[str, Field],
        kernels: Mapping[str, Kernel],
        caches: Sequence[Collection[str]],
        arena: int,
        names: Mapping[str, Collection[str]],
        linears: Collection[str],
    ) -> None:
        """Read the tables of arguments, calls and products. Raises ArtifactRejected, as all of its methods.

        Args:
            members: of the document.
            kernels: by name.
            caches: the arrays of each layer's.
            arena: bytes a token.
            names: of arguments, by their kind.
            linears: of which there are crossovers.
        """
        self._kernels, self._caches, self._arena, self._names, self._linears = kernels, caches, arena, names, linears
        self._arguments = [self._argument(item) for item in members["arguments"].items(8 * MOST_LAUNCHES)]
        self._is_size = [argument.kind in _NUMBERS for argument in self._arguments]
        self._calls = [self._call(item) for item in members["calls"].items(MOST_LAUNCHES)]
        self._products = [self._product(item) for item in members["products"].items(MOST_LAUNCHES)]

    def launches(self, field: Field, place: Place) -> tuple[Launch | Product, ...]:
        """Those of a step."""
        rows = field.integer_rows(MOST_LAUNCHES, 2)
        self._check(field, rows, 2, place)
        made: list[Launch | Product] = []
        for number, (call, region, *arguments) in enumerate(rows):
            if not -1 <= region <= MOST_REGIONS:
                field.items(MOST_LAUNCHES)[number].items(MOST_PARAMETERS)[1].integer(-1, MOST_REGIONS)
            given = tuple([self._arguments[argument] for argument in arguments])
            if call < 0:
                weight, inputs, sums = given
                dtype, n, k, stride, symbol, when, candidate = self._products[-1 - call]
                made.append(Product(weight, inputs, sums, dtype, n, k, stride, symbol, when, region, candidate))
            else:
                made.append(self._launch(call, given, region))
        return tuple(made)

    def rearrangements(self, field: Field, weights: Sequence[str]) -> tuple[Rearrangement, ...]:
        """What is done with some of the weights, which are told by place."""
        rows = field.integer_rows(MOST_WEIGHTS, 3)
        self._check(field, rows, 3, _REARRANGING)
        made = []
        for number, (call, weight, size, *arguments) in enumerate(rows):
            if not (0 <= weight < len(weights) and 1 <= size <= MOST_BYTES):
                items = field.items(MOST_WEIGHTS)[number].items(MOST_PARAMETERS)
                items[1].integer(0, len(weights) - 1)
                items[2].integer(1, MOST_BYTES)
            given = tuple([self._arguments[argument] for argument in arguments])
            made.append(Rearrangement(weights[weight], size, self._launch(call, given, -1)))
        if len({each.weight for each in made}) != len(made):
            field.reject("one for a weight")
        return tuple(made)

    def _launch(self, call: int, given: tuple[Argument, ...], region: int) -> Launch:
        kernel, grid, when, candidate = self._calls[call]
        return Launch(kernel.name, grid, given, when, region, candidate)

    def _check(self, field: Field, rows: Sequence[list[int]], begin: int, place: Place) -> None:
        """That rows name what there is and what may stand there; arguments are told from `begin` on."""
        calls = {number for number, call in enumerate(self._calls) if place.takes_call(call)}
        arguments = {number for number, argument in enumerate(self._arguments) if place.takes(argument)}
        expected = [[type == "i32" for _, type in kernel.parameters] for kernel, *_ in self._calls]
        for number, row in enumerate(rows):
            given = row[begin:]
            if row[0] in calls and arguments.issuperset(given):
                if [self._is_size[argument] for argument in given] == expected[row[0]]:
                    continue
            elif row[0] < 0 and arguments.issuperset(given) and self._multiplies(row[0], given, place):
                continue
            self._refuse(field.items(len(rows))[number], begin, place)

    def _multiplies(self, product: int, given: Sequence[int], place: Place) -> bool:
        """Whether a product may stand there, and have these arguments."""
        kinds = [self._arguments[argument].kind for argument in given]
        known = place.chosen and -1 - product < len(self._products) and len(kinds) == len(_MATRICES)
        return known and all(kind in allowed for kind, allowed in zip(kinds, _MATRICES, strict=True))

    def _refuse(self, field: Field, begin: int, place: Place) -> NoReturn:
        """Say what is wrong with a row."""
        call, *items = field.items(MOST_PARAMETERS + begin)
        number = call.integer(-len(self._products) if place.chosen else 0, len(self._calls) - 1)
        if number >= 0 and not place.takes_call(self._calls[number]):
            call.reject("a call that may stand there: nothing to choose from, no size of a step where there is none")
        items = items[begin - 1 :]
        given = [self._arguments[item.integer(0, len(self._arguments) - 1)] for item in items]
        for argument, item in zip(given, items, strict=True):
            if not place.takes(argument):
                item.reject(f"an argument that may stand there, which {argument} may not")
        if number < 0:
            field.reject("a weight or a workspace, inputs in the arena, and sums that are no weight")
        kernel = self._calls[number][0]
        if len(given) != len(kernel.parameters):
            field.reject(f"{len(kernel.parameters)} arguments, as {kernel.name} has parameters")
        for argument, (_, type), item in zip(given, kernel.parameters, items, strict=True):
            if (argument.kind in _NUMBERS) != (type == "i32"):
                item.reject(f"an argument for a parameter of type {type}, which {argument} is not")
        raise AssertionError("something is wrong with it")

    def _argument(self, field: Field) -> Argument:
        items = field.row(3)
        kind = cast(ArgumentKind, items[0].choice(*get_args(ArgumentKind)))
        most = {"arena": self._arena, "cache": len(self._caches) - 1}.get(kind, 0)
        if most < 0:
            field.reject("an argument other than a cache, since the plan has none")
        number = items[2].integer(0, most)
        allowed = self._names.get(kind, ("",))
        name = items[1].text()
        if name not in (self._caches[number] if kind == "cache" else allowed):
            items[1].reject(f"the name of a {kind}")
        return Argument(kind, name, number)

    def _call(self, field: Field) -> _Call:
        name, grid, when, candidate = field.row(4)
        kernel = self._kernels.get(name.text(IDENTIFIER))
        if kernel is None:
            name.reject("a kernel of the plan")
        x, y, z = (_side(item) for item in grid.row(3))
        return kernel, (x, y, z), _when(when), candidate.optional(self._candidate)

    def _product(self, field: Field) -> _Form:
        dtype, n, k, stride, rows, when, candidate = field.row(7)
        return (
            cast(Number, dtype.choice(*get_args(Number))),
            n.integer(1, 1 << 31),
            k.integer(1, 1 << 31),
            stride.integer(1, 1 << 31),
            cast(Symbol, rows.choice("T", "R")),
            _when(when),
            candidate.optional(self._candidate),
        )

    def _candidate(self, field: Field) -> Candidate:
        linear, variant, first, last = field.row(4)
        if linear.text() not in self._linears:
            linear.reject("a linear of which there are crossovers")
        least = first.integer(1, 1 << 30)
        most = last.optional(lambda item: item.integer(least, 1 << 30))
        return Candidate(linear.text(), variant.choice(*VARIANTS), least, most)


def _side(field: Field) -> Extent:
    if not isinstance(field.value, list):
        return Extent(times=field.integer(1, 1 << 30))
    symbol, per, times, plus, more = field.row(5)
    return Extent(
        symbol=cast(Symbol, symbol.choice(*get_args(Symbol))),
        per=per.integer(1, 1 << 30),
        times=times.integer(1, 1 << 30),
        plus=cast(Symbol, plus.choice(*get_args(Symbol))),
        more=more.integer(0, 1 << 30),
    )


def _when(field: Field) -> When:
    symbol, least, most, decode = field.row(4)
    if decode.value is not None and not isinstance(decode.value, bool):
        decode.reject("true, false or nothing")
    return When(
        symbol=cast(Symbol, symbol.choice(*get_args(Symbol))),
        least=least.integer(1, 1 << 30),
        most=most.optional(lambda item: item.integer(0, 1 << 30)),
        decode=decode.value,
    )
