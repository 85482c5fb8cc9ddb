"""A launch plan with its binaries as a file of an artifact: written by the compiler, checked by the runtime.

    to_json(plan, binaries, ptx, compiler) -> plain values
    parse_plan(content, where, code_bytes) -> PlanFile       raises ArtifactRejected

What is read comes from a stranger: every name must be known, every number within what the plan itself declares.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast, get_args

from llmc.runtime.checked_json import Field, parse
from llmc.runtime.crossover import VARIANTS, read_crossover
from llmc.runtime.cuda.plan import (
    CHOICE_ARRAYS,
    NUMBER_BYTES,
    STEP_ARRAYS,
    Argument,
    ArgumentKind,
    Cache,
    Candidate,
    Extent,
    Kernel,
    Launch,
    Number,
    Plan,
    Product,
    Rearrangement,
    Symbol,
    When,
    Workspace,
    cache_arrays,
)
from llmc.runtime.cuda.selection import select

ABI = 2
"""The version of kernels' parameters and of the plan."""
MOST_KERNELS, MOST_LAUNCHES, MOST_WEIGHTS, MOST_PARAMETERS = 10_000, 100_000, 1_000_000, 256
MOST_BYTES = 1 << 50

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_TYPE = re.compile(r"\*?[a-z][a-z0-9]{0,15}")


@dataclass(frozen=True)
class Binary:
    """Where the code of a kernel lies in the file of all code, and how it is launched."""

    symbol: str
    offset: int
    bytes: int
    shared: int
    """Bytes of shared memory."""
    threads: int
    """Of a block."""


@dataclass(frozen=True)
class PlanFile:
    """What the file of one target says."""

    plan: Plan
    binaries: Mapping[str, Binary]
    """Of each kernel, for the target itself."""
    ptx: Mapping[str, Binary]
    """Of each kernel, for newer GPUs; empty if there is none."""
    compiler: Mapping[str, str]
    """What made the code: names and versions."""


def to_json(
    plan: Plan, binaries: Mapping[str, Binary], ptx: Mapping[str, Binary], compiler: Mapping[str, str]
) -> dict[str, object]:
    """The file as plain values."""
    return {
        "abi": ABI,
        "plan": asdict(plan),
        "binaries": {name: asdict(binary) for name, binary in binaries.items()},
        "ptx": {name: asdict(binary) for name, binary in ptx.items()},
        "compiler": dict(compiler),
    }


def parse_plan(content: bytes, where: str, code_bytes: int) -> PlanFile:
    """Read a file whose code has `code_bytes` bytes. Raises ArtifactRejected."""
    members = parse(content, where).members(("abi", "plan", "binaries", "ptx", "compiler"))
    if members["abi"].integer(1, 1 << 30) != ABI:
        members["abi"].reject(f"version {ABI}, which this llmc runs")
    plan = _plan(members["plan"])
    names = {kernel.name for kernel in plan.kernels}
    binaries = _binaries(members["binaries"], code_bytes)
    ptx = _binaries(members["ptx"], code_bytes)
    if binaries.keys() != names:
        members["binaries"].reject("code for each kernel of the plan")
    if ptx and ptx.keys() != names:
        members["ptx"].reject("nothing, or code for each kernel of the plan")
    compiler = {name: item.text() for name, item in members["compiler"].entries(64)}
    return PlanFile(plan, binaries, ptx, compiler)


def _binaries(field: Field, code_bytes: int) -> dict[str, Binary]:
    found = {}
    for name, item in field.entries(MOST_KERNELS):
        members = item.members(("symbol", "offset", "bytes", "shared", "threads"))
        offset = members["offset"].integer(0, code_bytes)
        found[name] = Binary(
            symbol=members["symbol"].text(_IDENTIFIER),
            offset=offset,
            bytes=members["bytes"].integer(1, code_bytes - offset),
            shared=members["shared"].integer(0, 1 << 20),
            threads=members["threads"].integer(1, 1024),
        )
    return found


def _plan(field: Field) -> Plan:
    members = field.members(tuple(Plan.__dataclass_fields__))
    kernels = tuple(_kernel(item) for item in members["kernels"].items(MOST_KERNELS))
    if len({kernel.name for kernel in kernels}) != len(kernels):
        members["kernels"].reject("kernels of different names")
    caches = tuple(_cache(item) for item in members["caches"].items(100_000))
    workspaces = tuple(_workspace(item) for item in members["workspaces"].items(1000))
    weights = tuple(item.text() for item in members["weights"].items(MOST_WEIGHTS))
    sizes = tuple(item.integer(0, MOST_BYTES) for item in members["weight_bytes"].items(MOST_WEIGHTS))
    if len(set(weights)) != len(weights):
        members["weights"].reject("different names")
    if len(sizes) != len(weights):
        members["weight_bytes"].reject("a length for each weight")
    crossovers = {name: read_crossover(item) for name, item in members["crossovers"].entries(MOST_WEIGHTS)}
    reader = _Launches(
        kernels={kernel.name: kernel for kernel in kernels},
        weights=frozenset(weights),
        caches=caches,
        workspaces=frozenset(workspace.name for workspace in workspaces),
        arena=members["arena_bytes_per_token"].integer(0, MOST_BYTES),
        linears=frozenset(crossovers),
    )
    rearrangements = tuple(reader.rearrangement(item) for item in members["rearrangements"].items(MOST_WEIGHTS))
    if len({rearrangement.weight for rearrangement in rearrangements}) != len(rearrangements):
        members["rearrangements"].reject("one for a weight")
    plan = Plan(
        target=members["target"].text(_IDENTIFIER),
        kernels=kernels,
        launches=tuple(reader.launch_or_product(item) for item in members["launches"].items(MOST_LAUNCHES)),
        weights=weights,
        weight_bytes=sizes,
        rearrangements=rearrangements,
        caches=caches,
        workspaces=workspaces,
        arena_bytes_per_token=reader.arena,
        vocabulary=members["vocabulary"].integer(1, 1 << 31),
        block_size=members["block_size"].integer(1, 1 << 16),
        sampling=tuple(reader.launch(item, _CHOOSING) for item in members["sampling"].items(1000)),
        crossovers=crossovers,
    )
    for launch, item in zip(plan.launches, members["launches"].items(MOST_LAUNCHES), strict=True):
        if isinstance(launch, Product) and not _within(launch, plan):
            item.reject("a product of matrices that lie within the plan's memory")
    if select(plan) != plan:
        members["launches"].reject("launches in the steps that the crossovers choose them for")
    return plan


def _kernel(field: Field) -> Kernel:
    members = field.members(tuple(Kernel.__dataclass_fields__))
    if not isinstance(members["pdl"].value, bool):
        members["pdl"].reject("true or false")
    return Kernel(
        name=members["name"].text(_IDENTIFIER),
        parameters=tuple(_parameter(item) for item in members["parameters"].items(MOST_PARAMETERS)),
        warps=members["warps"].integer(1, 32),
        stages=members["stages"].integer(0, 64),
        pdl=members["pdl"].value,
    )


def _parameter(field: Field) -> tuple[str, str]:
    parts = field.items(2)
    if len(parts) != 2:
        field.reject("a name and a type")
    return parts[0].text(_IDENTIFIER), parts[1].text(_TYPE)


def _cache(field: Field) -> Cache:
    members = field.members(tuple(Cache.__dataclass_fields__))
    return Cache(
        heads=members["heads"].integer(1, 1 << 20),
        key_size=members["key_size"].integer(1, 1 << 20),
        value_size=members["value_size"].integer(1, 1 << 20),
        dtype=members["dtype"].choice("float32", "float16", "bfloat16", "int8", "fp8"),
    )


def _workspace(field: Field) -> Workspace:
    members = field.members(tuple(Workspace.__dataclass_fields__))
    return Workspace(
        name=members["name"].text(_IDENTIFIER),
        bytes=members["bytes"].integer(0, MOST_BYTES),
        bytes_per_token=members["bytes_per_token"].integer(0, MOST_BYTES),
        bytes_per_sequence=members["bytes_per_sequence"].integer(0, MOST_BYTES),
    )


@dataclass(frozen=True)
class _Place:
    """What the arguments of a launch may be, by where in a plan it stands."""

    kinds: tuple[ArgumentKind, ...]
    arrays: tuple[str, ...] = ()
    symbols: tuple[str, ...] = get_args(Symbol)
    """Of its grid."""
    chosen: bool = False
    """Whether launches may belong to a variant of a linear."""


_IN_STEP = tuple(kind for kind in get_args(ArgumentKind) if kind not in ("source", "target"))
_STEP = _Place(_IN_STEP, STEP_ARRAYS, chosen=True)
_CHOOSING = _Place(_IN_STEP, STEP_ARRAYS + CHOICE_ARRAYS)
_REARRANGING = _Place(("source", "target"), symbols=("",))
_WEIGHT, _INPUTS, _SUMS = _Place(("weight", "workspace")), _Place(("arena",)), _Place(("arena", "workspace", "logits"))


@dataclass(frozen=True)
class _Launches:
    """What launches may name."""

    kernels: Mapping[str, Kernel]
    weights: frozenset[str]
    caches: tuple[Cache, ...]
    workspaces: frozenset[str]
    arena: int
    linears: frozenset[str]

    def launch(self, field: Field, place: _Place = _STEP) -> Launch:
        members = field.members(tuple(Launch.__dataclass_fields__))
        kernel = self.kernels.get(members["kernel"].text(_IDENTIFIER))
        if kernel is None:
            members["kernel"].reject("a kernel of the plan")
        sides = tuple(_extent(item, place.symbols) for item in members["grid"].items(3))
        arguments = tuple(self._argument(item, place) for item in members["arguments"].items(MOST_PARAMETERS))
        if len(sides) != 3:
            members["grid"].reject("three sides")
        if len(arguments) != len(kernel.parameters):
            members["arguments"].reject(f"{len(kernel.parameters)} arguments, as {kernel.name} has parameters")
        for argument, (_, type), item in zip(
            arguments, kernel.parameters, members["arguments"].items(MOST_PARAMETERS), strict=True
        ):
            if (argument.kind == "size") != (type == "i32"):
                item.reject(f"an argument for a parameter of type {type}")
        candidate = members["candidate"].optional(self._candidate)
        if candidate is not None and not place.chosen:
            members["candidate"].reject("nothing, where there is nothing to choose")
        region = members["region"].integer(-1, 1 << 24)
        return Launch(kernel.name, sides, arguments, _when(members["when"]), region, candidate)

    def launch_or_product(self, field: Field) -> Launch | Product:
        """One of the launches of a step."""
        if not isinstance(field.value, dict) or "sums" not in field.value:
            return self.launch(field)
        members = field.members(tuple(Product.__dataclass_fields__))
        sizes = [members[name].integer(1, 1 << 31) for name in ("n", "k", "stride")]
        return Product(
            weight=self._argument(members["weight"], _WEIGHT),
            inputs=self._argument(members["inputs"], _INPUTS),
            sums=self._argument(members["sums"], _SUMS),
            dtype=cast(Number, members["dtype"].choice(*get_args(Number))),
            n=sizes[0],
            k=sizes[1],
            stride=sizes[2],
            rows=cast(Symbol, members["rows"].choice("T", "R")),
            when=_when(members["when"]),
            region=members["region"].integer(-1, 1 << 24),
            candidate=members["candidate"].optional(self._candidate),
        )

    def _candidate(self, field: Field) -> Candidate:
        members = field.members(tuple(Candidate.__dataclass_fields__))
        linear = members["linear"].text()
        if linear not in self.linears:
            members["linear"].reject("a linear of which there are crossovers")
        least = members["least"].integer(1, 1 << 30)
        most = members["most"].optional(lambda item: item.integer(least, 1 << 30))
        return Candidate(linear, members["variant"].choice(*VARIANTS), least, most)

    def rearrangement(self, field: Field) -> Rearrangement:
        members = field.members(tuple(Rearrangement.__dataclass_fields__))
        weight = members["weight"].text()
        if weight not in self.weights:
            members["weight"].reject("a weight of the plan")
        return Rearrangement(
            weight=weight,
            bytes=members["bytes"].integer(1, MOST_BYTES),
            launch=self.launch(members["launch"], _REARRANGING),
        )

    def _argument(self, field: Field, place: _Place) -> Argument:
        members = field.members(tuple(Argument.__dataclass_fields__))
        kind = cast(ArgumentKind, members["kind"].choice(*place.kinds))
        most = {"arena": self.arena, "cache": len(self.caches) - 1}.get(kind, 0)
        if most < 0:
            field.reject("an argument other than a cache, since the plan has none")
        number = members["number"].integer(0, most)
        allowed = {
            "step": place.arrays,
            "size": ("T", "B", "R", "M"),
            "cache": cache_arrays(self.caches[number].dtype) if kind == "cache" else (),
            "weight": self.weights,
            "workspace": self.workspaces,
        }.get(kind, ("",))
        name = members["name"].text()
        if name not in allowed:
            members["name"].reject(f"the name of a {kind}")
        return Argument(kind, name, number)


def _within(product: Product, plan: Plan) -> bool:
    """Whether the matrices lie in the memory that they are said to lie in: nobody else checks where a library reads."""
    number = NUMBER_BYTES[product.dtype]
    room = {("weight", name): size for name, size in zip(plan.weights, plan.weight_bytes, strict=True)}
    room |= {("weight", each.weight): each.bytes for each in plan.rearrangements}
    for each in plan.workspaces:
        room["workspace", each.name] = min(each.bytes, room.get(("workspace", each.name), each.bytes))
    if product.n * product.k * number > room[product.weight.kind, product.weight.name]:
        return False
    if product.inputs.number + product.k * number > plan.arena_bytes_per_token or product.n > product.stride:
        return False
    if product.sums.kind == "logits":
        return product.stride == plan.vocabulary and product.rows == "R"
    if product.sums.kind == "workspace":
        found = [each.bytes_per_token for each in plan.workspaces if each.name == product.sums.name]
        return product.stride * 4 <= min(found)
    return product.sums.number + product.stride * 4 <= plan.arena_bytes_per_token


def _extent(field: Field, symbols: tuple[str, ...]) -> Extent:
    members = field.members(tuple(Extent.__dataclass_fields__))
    return Extent(
        symbol=cast(Symbol, members["symbol"].choice(*symbols)),
        per=members["per"].integer(1, 1 << 30),
        times=members["times"].integer(1, 1 << 30),
        plus=cast(Symbol, members["plus"].choice(*symbols)),
        more=members["more"].integer(0, 1 << 30),
    )


def _when(field: Field) -> When:
    members = field.members(tuple(When.__dataclass_fields__))
    decode = members["decode"].value
    if decode is not None and not isinstance(decode, bool):
        members["decode"].reject("true, false or nothing")
    return When(
        symbol=cast(Symbol, members["symbol"].choice(*get_args(Symbol))),
        least=members["least"].integer(1, 1 << 30),
        most=members["most"].optional(lambda item: item.integer(0, 1 << 30)),
        decode=decode,
    )
