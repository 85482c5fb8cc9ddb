"""Products in files of launch plans: what was written is read; one that would read or write elsewhere is refused."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.tiny_gpu_program import PLAN

from llmc.errors import ArtifactRejected
from llmc.runtime.cuda.cuda_device import Image
from llmc.runtime.cuda.plan import Argument, Plan, Product, When, Workspace
from llmc.runtime.cuda.plan_file import parse_plan, write_plan

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
    images = {kernel.name: Image(b"code", kernel.name, 0, 32) for kernel in plan.kernels}
    plain = json.loads(write_plan(plan, images, {}, {})[0])
    assert isinstance(plain, dict)
    return plain


def parsed(plain: Document) -> Plan:
    return parse_plan(json.dumps(plain).encode(), "plan", 1000).plan


def test_what_was_written_is_read() -> None:
    assert parsed(document(WITH_PRODUCTS)) == WITH_PRODUCTS


MATRICES = "expected a weight or a workspace, inputs in the arena, and sums that are no weight"
BEYOND = "expected a product of matrices that lie within the plan's memory"
_PLACES = {"dtype": 0, "n": 1, "k": 2, "stride": 3, "rows": 4}


def _form(place: int, **values: object) -> Callable[[Document], None]:
    """Replaces values of a product."""

    def alter(plain: Document) -> None:
        for name, value in values.items():
            plain["products"][place][_PLACES[name]] = value

    return alter


def _argument(place: int, number: int, *argument: object) -> Callable[[Document], None]:
    """Gives a product another matrix."""

    def alter(plain: Document) -> None:
        plain["arguments"].append(list(argument))
        plain["launches"][len(PLAN.launches) + place][2 + number] = len(plain["arguments"]) - 1

    return alter


ALTERED: list[tuple[str, Callable[[Document], object]]] = [
    (BEYOND, _form(0, n=8, stride=8)),  # more rows than the weight has
    (BEYOND, _form(0, k=9)),
    (BEYOND, _form(0, stride=6)),  # rows of sums run into each other
    (BEYOND, _form(0, stride=8)),
    (BEYOND, _argument(0, 1, "arena", "", 97)),
    (BEYOND, _argument(0, 2, "arena", "", 101)),
    (BEYOND, _form(1, n=6)),
    (BEYOND, _form(1, stride=7)),
    (BEYOND, _argument(1, 2, "workspace", "unpacked", 0)),  # which has nothing for each token
    (BEYOND, _form(1, dtype="f32")),
    (BEYOND, _form(2, stride=8)),
    (BEYOND, _form(2, rows="T")),
    ("products[0][0]: expected 'f32' or 'f16' or 'bf16'", _form(0, dtype="int8")),
    ("products[0][4]: expected 'T' or 'R'", _form(0, rows="")),
    ("products[0][1]: expected an integer from 1", _form(0, n=0)),
    (MATRICES, _argument(0, 0, "arena", "", 0)),
    (MATRICES, _argument(0, 1, "weight", "table", 0)),
    (MATRICES, _argument(0, 2, "weight", "table", 0)),
    (MATRICES, lambda d: d["launches"][-1].pop()),
    ("[1]: expected the name of a weight", _argument(0, 0, "weight", "other", 0)),
    ("[0]: expected an integer from -3 to", lambda d: d["launches"][-1].__setitem__(0, -4)),
    ("products[0]: expected a list of 7", lambda d: d["products"][0].pop()),
    ("sampling[0][0]: expected an integer from 0", lambda d: d.update(sampling=d["launches"][-1:])),
]


@pytest.mark.parametrize(("message", "alter"), ALTERED)
def test_what_is_altered_is_refused(message: str, alter: Callable[[Document], object]) -> None:
    plain = document(WITH_PRODUCTS)
    alter(plain)
    with pytest.raises(ArtifactRejected) as caught:
        parsed(plain)
    assert message in str(caught.value)


def test_the_smallest_of_workspaces_of_one_name_counts() -> None:
    plain = document(WITH_PRODUCTS)
    name, _, *rest = plain["workspaces"][-2]
    plain["workspaces"].append([name, 100, *rest])
    with pytest.raises(ArtifactRejected, match=BEYOND):
        parsed(plain)
