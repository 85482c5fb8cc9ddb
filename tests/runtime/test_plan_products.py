"""Products in files of launch plans: what was written is read; one that would read or write elsewhere is refused."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.tiny_gpu_program import PLAN

from llmc.errors import ArtifactRejected
from llmc.runtime.cuda.plan import Argument, Plan, Product, When, Workspace
from llmc.runtime.cuda.plan_file import Binary, parse_plan, to_json

Document = dict[str, Any]
ARENA = Argument("arena", number=64)
WHEN = When("T", 9)
PRODUCTS = (
    Product(Argument("weight", "table"), ARENA, Argument("arena", number=100), "f32", 7, 8, 7, "T", WHEN, 0),
    Product(Argument("workspace", "unpacked"), ARENA, Argument("workspace", "sums"), "bf16", 5, 24, 6, "T", WHEN, 0),
    Product(Argument("weight", "table"), ARENA, Argument("logits"), "f16", 7, 16, 7, "R", When("R", 2, 40), 0),
)
WITH_PRODUCTS = dataclasses.replace(
    PLAN,
    launches=(*PLAN.launches, *PRODUCTS),
    workspaces=(*PLAN.workspaces, Workspace("unpacked", 240), Workspace("sums", 0, 24)),
)


def document(plan: Plan) -> Document:
    binaries = {kernel.name: Binary(kernel.name, 0, 200, 0, 32) for kernel in plan.kernels}
    plain = json.loads(json.dumps(to_json(plan, binaries, {}, {})))
    assert isinstance(plain, dict)
    return plain


def parsed(plain: Document) -> Plan:
    return parse_plan(json.dumps(plain, sort_keys=True).encode(), "plan", 1000).plan


def test_what_was_written_is_read() -> None:
    assert parsed(document(WITH_PRODUCTS)) == WITH_PRODUCTS


BEYOND = "expected a product of matrices that lie within the plan's memory"
ALTERED: list[tuple[str, int, Callable[[Document], object]]] = [
    (BEYOND, 0, lambda p: p.update(n=8, stride=8)),  # more rows than the weight has
    (BEYOND, 0, lambda p: p.update(k=9)),
    (BEYOND, 0, lambda p: p.update(stride=6)),  # rows of sums run into each other
    (BEYOND, 0, lambda p: p.update(stride=8)),
    (BEYOND, 0, lambda p: p["inputs"].update(number=97)),
    (BEYOND, 0, lambda p: p["sums"].update(number=101)),
    (BEYOND, 1, lambda p: p.update(n=6)),
    (BEYOND, 1, lambda p: p.update(stride=7)),
    (BEYOND, 1, lambda p: p["sums"].update(name="unpacked")),  # which has nothing for each token
    (BEYOND, 1, lambda p: p.update(dtype="f32")),
    (BEYOND, 2, lambda p: p.update(stride=8)),
    (BEYOND, 2, lambda p: p.update(rows="T")),
    ("dtype: expected 'f32' or 'f16' or 'bf16'", 0, lambda p: p.update(dtype="int8")),
    ("rows: expected 'T' or 'R'", 0, lambda p: p.update(rows="")),
    ("n: expected an integer from 1", 0, lambda p: p.update(n=0)),
    ("kind: expected 'weight' or 'workspace'", 0, lambda p: p["weight"].update(kind="arena", name="")),
    ("kind: expected 'arena'", 0, lambda p: p["inputs"].update(kind="weight", name="table", number=0)),
    ("name: expected the name of a weight", 0, lambda p: p["weight"].update(name="other")),
    ("'when' is missing", 0, lambda p: p.pop("when")),
]


@pytest.mark.parametrize(("message", "place", "alter"), ALTERED)
def test_what_is_altered_is_refused(message: str, place: int, alter: Callable[[Document], object]) -> None:
    plain = document(WITH_PRODUCTS)
    alter(plain["plan"]["launches"][len(PLAN.launches) + place])
    with pytest.raises(ArtifactRejected) as caught:
        parsed(plain)
    assert message in str(caught.value)


def test_the_smallest_of_workspaces_of_one_name_counts() -> None:
    plain = document(WITH_PRODUCTS)
    plain["plan"]["workspaces"].append(plain["plan"]["workspaces"][1] | {"bytes": 100})
    with pytest.raises(ArtifactRejected, match=BEYOND):
        parsed(plain)
