"""Over how many programs the keys of attention are divided: by the rule, or as a table says."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.tiny_gpu_program import PLAN

from llmc.errors import ArtifactRejected, BadOption
from llmc.runtime.checked_json import parse
from llmc.runtime.crossover import Crossover
from llmc.runtime.cuda.cuda_device import Image
from llmc.runtime.cuda.plan import Argument, Launch, Plan
from llmc.runtime.cuda.plan_file import parse_plan, write_plan
from llmc.runtime.cuda.selection import select
from llmc.runtime.shares import Shares, ShareTable, read_share_table
from llmc.runtime.tuning import read_gpu_tuning, write_gpu_tuning

NAME = "attention 32/8x128:bfloat16, k <= q"
RULE = Shares(33, 66)
TABLE = ShareTable(((1, 66), (4, 16), (32, 100)), "measured")


def test_the_rule_holds_where_nothing_was_measured() -> None:
    assert [RULE.at(count) for count in (1, 64)] == [33, 33]
    assert (RULE.source, str(RULE)) == ("rule", "33 from 1 on")


def test_a_table_holds_from_its_numbers_of_sequences_on_within_memory() -> None:
    shares = replace(RULE, chosen=TABLE)
    assert [shares.at(count) for count in (1, 3, 4, 31, 32, 256)] == [66, 66, 16, 16, 66, 66]
    assert (shares.source, str(shares)) == ("measured", "66 from 1 on, 16 from 4 on, 66 from 32 on")


def test_what_was_measured_takes_the_place_of_the_rule() -> None:
    plan = replace(PLAN, shares={NAME: RULE, "attention of another kind": RULE})
    chosen = select(plan, {NAME: TABLE, "8x8:f32": Crossover(1, 1), "attention of no kind": TABLE})
    assert chosen.shares == {NAME: replace(RULE, chosen=TABLE), "attention of another kind": RULE}
    assert select(chosen) == chosen, "it is kept"


def divided() -> Plan:
    """A plan, a launch of which is told the shares of an attention."""
    first, *others = PLAN.launches
    assert isinstance(first, Launch)
    kernels = [
        replace(kernel, parameters=(*kernel.parameters, ("programs", "i32"))) if kernel.name == first.kernel else kernel
        for kernel in PLAN.kernels
    ]
    told = replace(first, arguments=(*first.arguments, Argument("shares", NAME)))
    return replace(PLAN, kernels=tuple(kernels), launches=(told, *others), shares={NAME: RULE})


def reread(alter: Callable[[dict[str, Any]], object]) -> Plan:
    """That plan as a file, altered."""
    images = {kernel.name: Image(b"code", kernel.name, 0, 32) for kernel in divided().kernels}
    document, code = write_plan(divided(), images, {}, {})
    plain = json.loads(document)
    alter(plain)
    return parse_plan(json.dumps(plain).encode(), "plan", len(code)).plan


def test_plans_are_kept_with_their_rules() -> None:
    assert reread(lambda plain: None) == divided()


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda plain: plain["shares"].clear(), "the name of a shares"),
        (lambda plain: plain["shares"].update({NAME: [33, 32]}), "an integer from 33 to"),
        (lambda plain: plain["shares"].update({NAME: [0, 32]}), "an integer from 1 to"),
    ],
)
def test_plans_that_tell_of_other_shares_are_refused(alter: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(ArtifactRejected, match=message):
        reread(alter)


def test_tables_of_gpus_hold_linears_and_attentions(tmp_path: Path) -> None:
    table = {NAME: TABLE, "8x8:f32": Crossover(1, 2, "measured")}
    write_gpu_tuning(tmp_path, "a GPU", table)
    assert read_gpu_tuning(tmp_path, "a GPU") == table


@pytest.mark.parametrize(
    "starts",
    [[], [[2, 5]], [[1, 5], [1, 6]], [[1, 5], [4, 6], [3, 2]], [[1, 0]], [[1, 1 << 20]], [[1]], [[1, 2, 3]], 7],
)
def test_tables_that_no_measurement_gives_are_refused(starts: object, tmp_path: Path) -> None:
    field = parse(json.dumps({"starts": starts, "source": "measured"}).encode(), "table")
    with pytest.raises(ArtifactRejected, match=r"table.starts"):
        read_share_table(field)
    (tmp_path / "tuning.json").write_text(json.dumps({"a GPU": {NAME: field.value}}))
    with pytest.raises(BadOption, match=r"tuning.json: .*; remove the file, and run `llmc tune` again"):
        read_gpu_tuning(tmp_path, "a GPU")


def test_a_table_is_read_as_it_was_written() -> None:
    assert read_share_table(parse(json.dumps(asdict(TABLE)).encode(), "table")) == TABLE
