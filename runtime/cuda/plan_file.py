"""A launch plan with where its code lies, as a file of an artifact: written by the compiler, checked by the runtime.

    write_plan(plan, images, ptx, compiler) -> (document, code)
    parse_plan(content, where, code_bytes) -> PlanFile       raises ArtifactRejected

The document is JSON with a line for each row of its tables. What occurs often stands there once, and is named by its
place:

    arguments        [kind, name, number]
    calls            [kernel, [x, y, z], when, candidate]: a launch but for its arguments. A side is a number, or
                     [symbol, per, times, plus, more]; when is [symbol, least, most, decode]; a candidate is null, or
                     [linear, variant, least, most]
    products         [dtype, n, k, stride, rows, when, candidate]
    launches         [call, region, argument, ...]; -1 is the first product, -2 the second
    sampling         the same
    rearrangements   [call, weight, bytes, argument, ...]

What is read comes from a stranger: every name must be known, every number within what the plan itself declares.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

from llmc.runtime.checked_json import Field, parse
from llmc.runtime.crossover import read_crossover
from llmc.runtime.cuda.code_file import MOST_CODE_BYTES, Binary, Section, add_section
from llmc.runtime.cuda.cuda_device import Image
from llmc.runtime.cuda.plan import (
    CHOICE_ARRAYS,
    NUMBER_BYTES,
    STEP_ARRAYS,
    Cache,
    Kernel,
    Launch,
    Plan,
    Product,
    Workspace,
    cache_arrays,
)
from llmc.runtime.cuda.plan_tables import (
    CHOOSING,
    IDENTIFIER,
    MOST_BYTES,
    MOST_LAUNCHES,
    MOST_PARAMETERS,
    MOST_WEIGHTS,
    STEP,
    Tables,
)
from llmc.runtime.cuda.plan_writer import packed, plain, text
from llmc.runtime.cuda.selection import select
from llmc.runtime.shares import MOST_SHARES, Shares

ABI = 3
"""The version of kernels' parameters and of the plan."""
MOST_KERNELS = 10_000
_TYPE = re.compile(r"\*?[a-z][a-z0-9]{0,15}")


@dataclass(frozen=True)
class Code:
    """The code of all kernels for one kind of GPU."""

    section: Section
    binaries: Mapping[str, Binary]
    """Of each kernel."""


@dataclass(frozen=True)
class PlanFile:
    """What the file of one target says."""

    plan: Plan
    code: Code
    """For the target itself."""
    ptx: Code | None
    """For newer GPUs, if there is any."""
    compiler: Mapping[str, str]
    """What made the code: names and versions."""


def write_plan(
    plan: Plan, images: Mapping[str, Image], ptx: Mapping[str, Image], compiler: Mapping[str, str]
) -> tuple[bytes, bytes]:
    """The file of a plan, and that of the code of its kernels, which are given by name; `ptx` may be empty."""
    code = bytearray()
    document = {
        "abi": ABI,
        "compiler": dict(compiler),
        "code": packed(*add_section(code, images)),
        "ptx": packed(*add_section(code, ptx)) if ptx else None,
        **plain(plan),
    }
    return text(document), bytes(code)


def parse_plan(content: bytes, where: str, code_bytes: int) -> PlanFile:
    """Read a file whose code has `code_bytes` bytes. Raises ArtifactRejected."""
    document = parse(content, where)
    if isinstance(document.value, dict) and document.value.get("abi") != ABI:  # others have other members
        Field(document.value.get("abi"), f"{where}.abi").reject(f"version {ABI}, which this llmc runs")
    members = document.members(("abi", "compiler", "code", "ptx", *_MEMBERS))
    members["abi"].integer(ABI, ABI)
    plan = _plan(members)
    names = {kernel.name for kernel in plan.kernels}
    code = _code(members["code"], names, code_bytes)
    ptx = members["ptx"].optional(lambda item: _code(item, names, code_bytes))
    compiler = {name: item.text() for name, item in members["compiler"].entries(64)}
    return PlanFile(plan, code, ptx, compiler)


def _code(field: Field, names: Collection[str], code_bytes: int) -> Code:
    members = field.members(("section", "kernels"))
    offset, size, unpacked = members["section"].row(3)
    begin = offset.integer(0, code_bytes)
    section = Section(begin, size.integer(1, max(code_bytes - begin, 1)), unpacked.integer(1, MOST_CODE_BYTES))
    binaries = {name: _binary(item, section.unpacked) for name, item in members["kernels"].entries(MOST_KERNELS)}
    if binaries.keys() != names:
        members["kernels"].reject("code for each kernel of the plan")
    return Code(section, binaries)


def _binary(field: Field, code_bytes: int) -> Binary:
    symbol, offset, size, shared, threads = field.row(5)
    begin = offset.integer(0, code_bytes)
    return Binary(
        symbol=symbol.text(IDENTIFIER),
        offset=begin,
        bytes=size.integer(1, max(code_bytes - begin, 1)),
        shared=shared.integer(0, 1 << 20),
        threads=threads.integer(1, 1024),
    )


_MEMBERS = (
    "target", "vocabulary", "block_size", "arena_bytes_per_token", "kernels", "weights", "caches", "workspaces",
    "crossovers", "shares", "arguments", "calls", "products", "rearrangements", "launches", "sampling",
)  # fmt: skip


def _plan(members: Mapping[str, Field]) -> Plan:
    kernels = tuple(_kernel(item) for item in members["kernels"].items(MOST_KERNELS))
    if len({kernel.name for kernel in kernels}) != len(kernels):
        members["kernels"].reject("kernels of different names")
    sizes = {name: item.integer(0, MOST_BYTES) for name, item in members["weights"].entries(MOST_WEIGHTS)}
    caches = tuple(_cache(item) for item in members["caches"].items(100_000))
    workspaces = tuple(_workspace(item) for item in members["workspaces"].items(1000))
    crossovers = {name: read_crossover(item) for name, item in members["crossovers"].entries(MOST_WEIGHTS)}
    shares = {name: _shares(item) for name, item in members["shares"].entries(MOST_WEIGHTS)}
    arena = members["arena_bytes_per_token"].integer(0, MOST_BYTES)
    names = {
        "step": STEP_ARRAYS + CHOICE_ARRAYS,
        "size": ("T", "B", "R", "M"),
        "shares": shares.keys(),
        "weight": sizes.keys(),
        "workspace": {workspace.name for workspace in workspaces},
    }
    arrays = [cache_arrays(cache.dtype) for cache in caches]
    tables = Tables(members, {kernel.name: kernel for kernel in kernels}, arrays, arena, names, crossovers)
    plan = Plan(
        target=members["target"].text(IDENTIFIER),
        kernels=kernels,
        launches=tables.launches(members["launches"], STEP),
        weights=tuple(sizes),
        weight_bytes=tuple(sizes.values()),
        rearrangements=tables.rearrangements(members["rearrangements"], tuple(sizes)),
        caches=caches,
        workspaces=workspaces,
        arena_bytes_per_token=arena,
        vocabulary=members["vocabulary"].integer(1, 1 << 31),
        block_size=members["block_size"].integer(1, 1 << 16),
        sampling=cast(tuple[Launch, ...], tables.launches(members["sampling"], CHOOSING)),
        crossovers=crossovers,
        shares=shares,
    )
    room = _room(plan)
    for place, launch in enumerate(plan.launches):
        if isinstance(launch, Product) and not _within(launch, plan, room):
            members["launches"].items(MOST_LAUNCHES)[place].reject(
                "a product of matrices that lie within the plan's memory"
            )
    if select(plan) != plan:
        members["launches"].reject("launches in the steps that the crossovers choose them for")
    return plan


def _shares(field: Field) -> Shares:
    rule, most = field.row(2)
    return Shares(rule.integer(1, MOST_SHARES), most.integer(rule.integer(1, MOST_SHARES), MOST_SHARES))


def _kernel(field: Field) -> Kernel:
    name, parameters, warps, stages, pdl = field.row(5)
    if not isinstance(pdl.value, bool):
        pdl.reject("true or false")
    return Kernel(
        name=name.text(IDENTIFIER),
        parameters=tuple(
            (Field(each, parameters.where).text(IDENTIFIER), item.text(_TYPE))
            for each, item in parameters.entries(MOST_PARAMETERS)
        ),
        warps=warps.integer(1, 32),
        stages=stages.integer(0, 64),
        pdl=pdl.value,
    )


def _cache(field: Field) -> Cache:
    *sizes, dtype = field.row(4)
    heads, key_size, value_size = (size.integer(1, 1 << 20) for size in sizes)
    return Cache(heads, key_size, value_size, dtype.choice("float32", "float16", "bfloat16", "int8", "fp8"))


def _workspace(field: Field) -> Workspace:
    name, *sizes = field.row(4)
    return Workspace(name.text(IDENTIFIER), *(size.integer(0, MOST_BYTES) for size in sizes))


def _room(plan: Plan) -> dict[tuple[str, str], int]:
    """Bytes of what products read: weights as kernels read them, and workspaces."""
    room = {("weight", name): size for name, size in zip(plan.weights, plan.weight_bytes, strict=True)}
    room |= {("weight", each.weight): each.bytes for each in plan.rearrangements}
    for each in plan.workspaces:
        room["workspace", each.name] = min(each.bytes, room.get(("workspace", each.name), each.bytes))
    return room


def _within(product: Product, plan: Plan, room: Mapping[tuple[str, str], int]) -> bool:
    """Whether the matrices lie in the memory that they are said to lie in: nobody else checks where a library reads."""
    number = NUMBER_BYTES[product.dtype]
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
