"""Launch plans as files: what was written is read, and what a stranger altered is refused."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from support.tiny_choosing import tiny_choosing
from support.tiny_gpu_program import CHOOSING, PLAN
from support.tiny_variants import VARIANTS

from llmc.errors import ArtifactRejected
from llmc.runtime.cuda.plan_file import Binary, parse_plan, to_json

CODE_BYTES = 1000
BINARIES = {kernel.name: Binary(kernel.name, 200 * place, 200, 0, 32) for place, kernel in enumerate(CHOOSING.kernels)}
COMPILER = {"triton": "3.9.0"}
Document = dict[str, Any]


def document() -> Document:
    plain = json.loads(json.dumps(to_json(CHOOSING, BINARIES, {}, COMPILER)))
    assert isinstance(plain, dict)
    return plain


def parsed(plain: Document):
    return parse_plan(json.dumps(plain, sort_keys=True).encode(), "plan", CODE_BYTES)


def test_what_was_written_is_read() -> None:
    found = parsed(document())
    assert found.plan == CHOOSING
    assert (found.binaries, found.ptx, found.compiler) == (BINARIES, {}, COMPILER)
    names = {name: BINARIES[name] for name in (kernel.name for kernel in PLAN.kernels)}
    with_ptx = parse_plan(json.dumps(to_json(PLAN, names, names, {})).encode(), "plan", CODE_BYTES)
    assert (with_ptx.plan, with_ptx.ptx) == (PLAN, names)


def test_crossovers_and_what_they_choose_from_are_read() -> None:
    binaries = {kernel.name: Binary(kernel.name, 0, 200, 0, 32) for kernel in VARIANTS.kernels}
    plain = json.loads(json.dumps(to_json(VARIANTS, binaries, {}, COMPILER)))
    assert parsed(plain).plan == VARIANTS


def _variants(alter: Callable[[Document], object]) -> str:
    """What is said of the plan with variants once it is altered."""
    binaries = {kernel.name: Binary(kernel.name, 0, 200, 0, 32) for kernel in VARIANTS.kernels}
    plain = json.loads(json.dumps(to_json(VARIANTS, binaries, {}, COMPILER)))
    alter(plain["plan"])
    with pytest.raises(ArtifactRejected) as caught:
        parsed(plain)
    return str(caught.value)


def _logits(plan: Document, place: int) -> Document:
    """One of the launches that have a variant."""
    launch = plan["launches"][2 + place]
    assert isinstance(launch, dict)
    return launch


@pytest.mark.parametrize(
    ("message", "alter"),
    [
        ("expected launches in the steps that", lambda plan: _logits(plan, 0)["when"].update(most=3)),
        ("expected launches in the steps that", lambda plan: plan["crossovers"]["7x8:f32"].update(flat=2)),
        ("expected crossovers in order", lambda plan: plan["crossovers"]["7x8:f32"].update(flat=18)),
        ("gemm: expected an integer from 1", lambda plan: plan["crossovers"]["7x8:f32"].update(gemm=0)),
        ("linear: expected a linear of which there are", lambda plan: plan.update(crossovers={})),
        ("variant: expected 'gemv' or", lambda plan: _logits(plan, 0)["candidate"].update(variant="fast")),
        ("most: expected an integer from 9", lambda plan: _logits(plan, 2)["candidate"].update(most=8)),
        ("nothing computes 7x8:f32 of region 0 for 65 rows", lambda plan: plan["launches"].pop()),
        ("candidate: expected nothing, where there is nothing to choose", lambda plan: plan["rearrangements"][0][
            "launch"].update(candidate=_logits(plan, 0)["candidate"])),
    ],
)  # fmt: skip
def test_crossovers_that_do_not_fit_their_plan_are_refused(message: str, alter: Callable[[Document], object]) -> None:
    assert message in _variants(alter)


def test_the_kernels_that_choose_tokens_are_read() -> None:
    plan, _ = tiny_choosing()
    binaries = {kernel.name: Binary(kernel.name, 0, 200, 0, 32) for kernel in plan.kernels}
    plain = json.loads(json.dumps(to_json(plan, binaries, {}, COMPILER)))
    assert parsed(plain).plan == plan
    assert any(launch["when"]["symbol"] == "F" for launch in plain["plan"]["sampling"])
    plain["plan"]["workspaces"][-1]["bytes_per_sequence"] = -8
    with pytest.raises(ArtifactRejected, match="bytes_per_sequence: expected an integer from 0"):
        parsed(plain)


def _argument(kind: str) -> Callable[[Document], Document]:
    """The first argument of its kind in the launches of a step."""
    return lambda plain: next(
        argument for launch in plain["plan"]["launches"] for argument in launch["arguments"] if argument["kind"] == kind
    )


ALTERED: list[tuple[str, Callable[[Document], object]]] = [
    ("abi: expected version 2", lambda d: d.update(abi=1)),
    ("binaries: expected code for each", lambda d: d["binaries"].pop("sum_0")),
    ("ptx: expected nothing, or code for each", lambda d: d["ptx"].update(sum_0=d["binaries"]["sum_0"])),
    ("sum_0.bytes: expected an integer from 1 to 600", lambda d: d["binaries"]["sum_0"].update(bytes=601)),
    ("sum_0.offset: expected an integer", lambda d: d["binaries"]["sum_0"].update(offset=-1)),
    ("sum_0.threads: expected an integer from 1 to 1024", lambda d: d["binaries"]["sum_0"].update(threads=2048)),
    ("kernels: expected kernels of different names", lambda d: d["plan"]["kernels"].append(d["plan"]["kernels"][0])),
    ("weights: expected different names", lambda d: d["plan"].update(weights=["table", "table"])),
    ("weight_bytes: expected a length for each", lambda d: d["plan"]["weight_bytes"].pop()),
    ("kernel: expected a kernel of the plan", lambda d: d["plan"]["launches"][0].update(kernel="other_0")),
    ("grid: expected three sides", lambda d: d["plan"]["launches"][0]["grid"].pop()),
    ("arguments: expected 3 arguments", lambda d: d["plan"]["launches"][0]["arguments"].pop()),
    ("name: expected the name of a step", lambda d: _argument("step")(d).update(name="uniforms")),
    ("name: expected the name of a cache", lambda d: _argument("cache")(d).update(name="k_scale")),
    ("number: expected an integer from 0 to 0", lambda d: _argument("cache")(d).update(number=1)),
    ("number: expected an integer from 0 to 128", lambda d: _argument("arena")(d).update(number=129)),
    ("name: expected the name of a weight", lambda d: _argument("weight")(d).update(name="unused")),
    ("name: expected the name of a workspace", lambda d: _argument("workspace")(d).update(name="other")),
    ("kind: expected", lambda d: _argument("logits")(d).update(kind="source")),
    ("expected an argument for a parameter of type i32", lambda d: _argument("size")(d).update(kind="logits", name="")),
    ("other than a cache", lambda d: d["plan"].update(caches=[])),
    ("rearrangements: expected one for a weight", lambda d: d["plan"]["rearrangements"].append(
        d["plan"]["rearrangements"][0])),
    ("kind: expected 'source' or 'target'", lambda d: d["plan"]["rearrangements"][0]["launch"]["arguments"][0].update(
        kind="arena")),
    ("symbol: expected ''", lambda d: d["plan"]["rearrangements"][0]["launch"]["grid"][0].update(symbol="T")),
    ("per: expected an integer from 1", lambda d: d["plan"]["launches"][0]["grid"][0].update(per=0)),
    ("decode: expected true, false or nothing", lambda d: d["plan"]["launches"][0]["when"].update(decode=1)),
    ("pdl: expected true or false", lambda d: d["plan"]["kernels"][0].update(pdl="no")),
    ("block_size: expected an integer", lambda d: d["plan"].update(block_size=0)),
    ("'vocabulary' is missing", lambda d: d["plan"].pop("vocabulary")),
]  # fmt: skip


@pytest.mark.parametrize(("message", "alter"), ALTERED, ids=[message for message, _ in ALTERED])
def test_what_is_altered_is_refused(message: str, alter: Callable[[Document], object]) -> None:
    plain = document()
    alter(plain)
    with pytest.raises(ArtifactRejected) as caught:
        parsed(plain)
    assert message in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_changed_is_read_or_refused(seed: int) -> None:
    """Values replaced, removed and swapped anywhere: no other error, whatever comes."""
    choose = random.Random(seed)
    values = [None, -1, 0, 1, 1 << 70, "", "T", "arena", True, [], {}, [1], {"x": 1}, 0.5]
    for _ in range(30):
        plain = document()
        for _ in range(choose.randint(1, 3)):
            _alter_somewhere(plain, choose, values)
        try:
            parsed(plain)
        except ArtifactRejected:
            continue


def _alter_somewhere(plain: Document, choose: random.Random, values: list[object]) -> None:
    at: Any = plain
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = choose.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and choose.random() < 0.85:
            at = at[key]
            continue
        if choose.random() < 0.2:
            del at[key]
        else:
            at[key] = copy.deepcopy(choose.choice(values))  # which may be altered in its turn
        return
