"""Launch plans as files: what was written is read, and what a stranger altered is refused."""

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from support.tiny_choosing import tiny_choosing
from support.tiny_gpu_program import CHOOSING, PLAN
from support.tiny_variants import VARIANTS

from llmc.errors import ArtifactRejected
from llmc.runtime.cuda.code_file import read_section
from llmc.runtime.cuda.cuda_device import Image
from llmc.runtime.cuda.plan import Plan
from llmc.runtime.cuda.plan_file import PlanFile, parse_plan, write_plan

CODE_BYTES = 1000
COMPILER = {"triton": "3.9.0"}
Document = dict[str, Any]


def images(plan: Plan) -> dict[str, Image]:
    """Code of each kernel, all of different lengths."""
    return {
        kernel.name: Image(kernel.name.encode() * (place + 1), kernel.name, 64 * place, 32)
        for place, kernel in enumerate(plan.kernels)
    }


def document(plan: Plan = CHOOSING) -> Document:
    plain = json.loads(write_plan(plan, images(plan), {}, COMPILER)[0])
    assert isinstance(plain, dict)
    return plain


def parsed(plain: Document) -> PlanFile:
    return parse_plan(json.dumps(plain).encode(), "plan", CODE_BYTES)


def refusal(alter: Callable[[Document], object], plan: Plan = CHOOSING) -> str:
    """What is said of the document of a plan once it is altered."""
    plain = document(plan)
    alter(plain)
    with pytest.raises(ArtifactRejected) as caught:
        parsed(plain)
    return str(caught.value)


@pytest.mark.parametrize("plan", [CHOOSING, PLAN, VARIANTS, tiny_choosing()[0]])
def test_what_was_written_is_read(plan: Plan) -> None:
    code = images(plan)
    content, packed = write_plan(plan, code, {}, COMPILER)
    found = parse_plan(content, "plan", len(packed))
    assert (found.plan, found.ptx, found.compiler) == (plan, None, COMPILER)
    assert read_section(packed, found.code.section, found.code.binaries, "code") == code


def test_ptx_lies_behind_the_code() -> None:
    code, ptx = images(PLAN), {name: Image(b"ptx", name, 5, 64) for name in images(PLAN)}
    content, packed = write_plan(PLAN, code, ptx, COMPILER)
    found = parse_plan(content, "plan", len(packed))
    assert found.ptx is not None and found.ptx.section.unpacked == len(b"ptx")
    assert read_section(packed, found.ptx.section, found.ptx.binaries, "code") == ptx
    assert read_section(packed, found.code.section, found.code.binaries, "code") == code


def test_kernels_of_the_same_code_are_kept_once() -> None:
    same = {kernel.name: Image(b"the same", "symbol", 0, 32) for kernel in CHOOSING.kernels}
    content, packed = write_plan(CHOOSING, same, {}, COMPILER)
    found = parse_plan(content, "plan", len(packed)).code
    assert found.section.unpacked == len(b"the same")
    assert len({id(image) for image in read_section(packed, found.section, found.binaries, "code").values()}) == 1


def test_damaged_code_is_refused() -> None:
    content, packed = write_plan(PLAN, images(PLAN), {}, COMPILER)
    code = parse_plan(content, "plan", len(packed)).code
    for wrong in (packed[:-1], bytes(len(packed)), packed[:20] + bytes([packed[20] ^ 1]) + packed[21:]):
        with pytest.raises(ArtifactRejected, match="code: the compressed code is damaged"):
            read_section(wrong, code.section, code.binaries, "code")
    for unpacked in (code.section.unpacked - 1, code.section.unpacked + 1):
        section = dataclasses.replace(code.section, unpacked=unpacked)
        with pytest.raises(ArtifactRejected, match=f"expected {unpacked} bytes of code"):
            read_section(packed, section, code.binaries, "code")


def test_layers_that_repeat_take_little_room() -> None:
    """A launch more of the same kind is a line of a few numbers."""
    many = dataclasses.replace(PLAN, launches=PLAN.launches * 100)
    once, often = (len(write_plan(plan, images(plan), {}, COMPILER)[0]) for plan in (PLAN, many))
    assert often - once < 40 * 99 * len(PLAN.launches)


def test_a_line_is_a_row() -> None:
    content, _ = write_plan(CHOOSING, images(CHOOSING), {}, COMPILER)
    lines = content.decode().splitlines()
    begin = lines.index('"launches": [')
    rows = [json.loads(line.rstrip(",")) for line in lines[begin + 1 : begin + 1 + len(CHOOSING.launches)]]
    assert rows == document()["launches"]


def _logits(plan: Document, place: int) -> list[Any]:
    """The call of one of the launches that have a variant."""
    found = plan["calls"][plan["launches"][2 + place][0]]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    ("message", "alter"),
    [
        ("expected launches in the steps that", lambda plan: _logits(plan, 0)[2].__setitem__(2, 3)),
        ("expected launches in the steps that", lambda plan: plan["crossovers"]["7x8:f32"].update(flat=2)),
        ("expected crossovers in order", lambda plan: plan["crossovers"]["7x8:f32"].update(flat=18)),
        ("gemm: expected an integer from 1", lambda plan: plan["crossovers"]["7x8:f32"].update(gemm=0)),
        ("[3][0]: expected a linear of which there are", lambda plan: plan.update(crossovers={})),
        ("[3][1]: expected 'gemv' or", lambda plan: _logits(plan, 0)[3].__setitem__(1, "fast")),
        ("[3][3]: expected an integer from 9", lambda plan: _logits(plan, 2)[3].__setitem__(3, 8)),
        ("nothing computes 7x8:f32 of region 0 for 65 rows", lambda plan: plan["launches"].pop()),
        ("expected a call that may stand there", lambda plan: plan["sampling"].append(plan["launches"][2])),
    ],
)  # fmt: skip
def test_crossovers_that_do_not_fit_their_plan_are_refused(message: str, alter: Callable[[Document], object]) -> None:
    assert message in refusal(alter, VARIANTS)


def test_the_kernels_that_choose_tokens_may_depend_on_whether_any_are_ruled_out() -> None:
    plan, _ = tiny_choosing()
    plain = document(plan)
    assert any(plain["calls"][row[0]][2][0] == "F" for row in plain["sampling"])
    message = refusal(lambda d: d["workspaces"][-1].__setitem__(3, -8), plan)
    assert "workspaces[" in message and "[3]: expected an integer from 0" in message


def _argument(kind: str) -> Callable[[Document], list[Any]]:
    """The first argument of its kind."""
    return lambda plain: next(argument for argument in plain["arguments"] if argument[0] == kind)


def _place(kind: str) -> Callable[[Document], int]:
    """Where it stands."""
    return lambda plain: next(place for place, argument in enumerate(plain["arguments"]) if argument[0] == kind)


def _set(*path: Any) -> Callable[[Document], None]:
    """Replaces the value at a path, whose last element is the new value."""

    def alter(plain: Document) -> None:
        *through, key, value = path
        at: Any = plain
        for each in through:
            at = each(at) if callable(each) else at[each]
        at[key] = value

    return alter


def _exchange(kind: str, other: str) -> Callable[[Document], None]:
    """Give the launches of a step an argument of another kind."""

    def alter(plain: Document) -> None:
        old, new = _place(kind)(plain), _place(other)(plain)
        for row in plain["launches"]:
            row[2:] = [new if place == old else place for place in row[2:]]

    return alter


ALTERED: list[tuple[str, Callable[[Document], object]]] = [
    ("plan.abi: expected version 3, which this llmc runs, found 2", _set("abi", 2)),
    ("plan.abi: expected version 3, which this llmc runs, found 2", lambda d: d.clear() or d.update(abi=2, plan={})),
    ("plan.abi: expected version 3, which this llmc runs, found None", lambda d: d.pop("abi")),
    ("kernels: expected code for each", lambda d: d["code"]["kernels"].pop("sum_0")),
    ("ptx.kernels: expected code for each", lambda d: d.update(ptx=d["code"] | {"kernels": {}})),
    ("section[1]: expected an integer from 1 to 1000", _set("code", "section", 1, 1001)),
    ("section[2]: expected an integer from 1 to", _set("code", "section", 2, 1 << 40)),
    ("sum_0[2]: expected an integer from 1 to", _set("code", "kernels", "sum_0", 2, 601)),
    ("sum_0[1]: expected an integer", _set("code", "kernels", "sum_0", 1, -1)),
    ("sum_0[4]: expected an integer from 1 to 1024", _set("code", "kernels", "sum_0", 4, 2048)),
    ("kernels: expected kernels of different names", lambda d: d["kernels"].append(d["kernels"][0])),
    ("kernels[0][1].", _set("kernels", 0, 1, {"x": "f 32"})),
    ("weights.table: expected an integer from 0", _set("weights", "table", -1)),
    ("calls[0][0]: expected a kernel of the plan", _set("calls", 0, 0, "other_0")),
    ("calls[0][1]: expected a list of 3", lambda d: d["calls"][0][1].pop()),
    ("launches[0]: expected 3 arguments", lambda d: d["launches"][0].pop()),
    ("launches[0][0]: expected an integer from 0 to", _set("launches", 0, 0, 99)),
    ("launches[0][0]: expected an integer from 0 to", _set("launches", 0, 0, -1)),
    ("launches[0][1]: expected an integer from -1 to", _set("launches", 0, 1, -2)),
    ("launches[0][2]: expected an integer from 0 to", _set("launches", 0, 2, -1)),
    ("launches[0][2]: expected an integer", _set("launches", 0, 2, True)),
    ("launches[0]: expected a list of at least 2 integers", _set("launches", 0, "launch")),
    ("expected an argument that may stand there", lambda d: _argument("step")(d).__setitem__(1, "uniforms")),
    ("[1]: expected the name of a cache", lambda d: _argument("cache")(d).__setitem__(1, "k_scale")),
    ("[2]: expected an integer from 0 to 0", lambda d: _argument("cache")(d).__setitem__(2, 1)),
    ("[2]: expected an integer from 0 to 128", lambda d: _argument("arena")(d).__setitem__(2, 129)),
    ("[1]: expected the name of a weight", lambda d: _argument("weight")(d).__setitem__(1, "unused")),
    ("[1]: expected the name of a workspace", lambda d: _argument("workspace")(d).__setitem__(1, "other")),
    ("expected an argument that may stand there, which Argument(kind='source'", _exchange("logits", "source")),
    ("expected an argument for a parameter of type i32", _exchange("size", "logits")),
    ("other than a cache", _set("caches", [])),
    ("rearrangements: expected one for a weight", lambda d: d["rearrangements"].append(d["rearrangements"][0])),
    ("rearrangements[0][1]: expected an integer from 0 to 1", _set("rearrangements", 0, 1, 2)),
    ("rearrangements[0][2]: expected an integer from 1", _set("rearrangements", 0, 2, 0)),
    ("rearrangements[0][3]: expected an argument that may stand there", lambda d: d["rearrangements"][0].__setitem__(
        3, _place("arena")(d))),
    ("rearrangements[0][0]: expected a call that may stand there", lambda d: d["calls"][d["rearrangements"][0][0]][
        1].__setitem__(0, ["T", 1, 1, "", 0])),
    ("[1]: expected an integer from 1", _set("calls", 0, 1, 0, ["T", 0, 1, "", 0])),
    ("[2][3]: expected true, false or nothing", _set("calls", 0, 2, 3, 1)),
    ("kernels[0][4]: expected true or false", _set("kernels", 0, 4, "no")),
    ("block_size: expected an integer", _set("block_size", 0)),
    ("'vocabulary' is missing", lambda d: d.pop("vocabulary")),
]  # fmt: skip


@pytest.mark.parametrize(("message", "alter"), ALTERED, ids=[message for message, _ in ALTERED])
def test_what_is_altered_is_refused(message: str, alter: Callable[[Document], object]) -> None:
    assert message in refusal(alter)


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
