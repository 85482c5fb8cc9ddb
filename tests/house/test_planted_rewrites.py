"""A wrong rewrite, planted into a pass, stops the build by name; unproved, bisection finds it."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from house.conftest import Llmc, document

import llmc
from llmc.bisect_model import bisect_model
from llmc.compare import Expected, graph_logits, source_module
from llmc.errors import BadOption, BuildFailed
from llmc.frontend.read import read
from llmc.ir.pass_manager import run_passes
from llmc.ir.rewrite import Rewriter
from llmc.passes import lift_masks
from llmc.pipeline import pipeline
from llmc.threshold import Threshold

Spoil = Callable[[Sequence[Any]], Sequence[Any]]
"""Changes the values that a replacement returns."""


def wrong_eps(values: Sequence[Any]) -> Sequence[Any]:
    x, weight, eps, *rest = values[0].node.args
    values[0].node.args = (x, weight, eps * 10_000, *rest)
    return values


def keys_for_values(values: Sequence[Any]) -> Sequence[Any]:
    query, key, value = values
    return query, value, key


def plant(patch: pytest.MonkeyPatch, rule: str, spoil: Spoil, place: int) -> None:
    """Spoil the rewrite number `place`, from 0, that `rule` makes."""
    right = Rewriter.replace
    calls = 0

    def replace(self: Rewriter, name: str, inputs: Any, outputs: Any, build: Any, **options: Any) -> bool:
        nonlocal calls
        if name != rule:
            return right(self, name, inputs, outputs, build, **options)
        calls = 0 if not any(done.rule == rule for done in self.applied) else calls
        wrong = calls == place
        calls += 1

        def spoiled(*values: Any) -> Any:
            made = build(*values)
            return spoil(list(made) if isinstance(made, (list, tuple)) else [made])

        return right(self, name, inputs, outputs, spoiled if wrong else build, **options)

    patch.setattr(Rewriter, "replace", replace)


def plant_mask(patch: pytest.MonkeyPatch) -> None:
    """Let every query see one token of its future."""
    right = lift_masks.lift
    patch.setattr(lift_masks, "lift", lambda *given: dataclasses.replace(right(*given), mask="k <= q + 1"))


PLANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "recognize_norms": lambda patch: plant(patch, "recognize_norms", wrong_eps, 2),
    "fuse_qkv": lambda patch: plant(patch, "fuse_qkv", keys_for_values, 1),
    "lift_masks": plant_mask,
}
"""By the rule that is made wrong."""


@pytest.mark.parametrize("rule", PLANTS)
def test_a_planted_rewrite_stops_the_build_and_bisection_finds_it(
    rule: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PLANTS[rule](monkeypatch)
    with pytest.raises(BuildFailed, match=rf"rewrite \d+, {rule}, at \w+ \(.*layers\.\d") as failed:
        llmc.compile(tiny_model)
    number = int(re.search(r"rewrite (\d+), ", str(failed.value)).group(1))  # type: ignore[union-attr]
    found = bisect_model(str(tiny_model), check=Threshold.parse("max error < 1e-3"))
    assert found.first_bad is not None
    assert (found.first_bad.number, found.first_bad.rule) == (number, rule)


def test_the_command_prints_the_first_bad_rewrite_by_number_rule_and_origin(
    llmc_here: Llmc, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PLANTS["fuse_qkv"](monkeypatch)
    done = llmc_here("bisect", tiny_model, "--check", "max error < 1e-3")
    assert done.returncode == 5, done.stderr
    line = r"first bad rewrite: #\d+ fuse_qkv at \w+ \(model\.layers\.1\.self_attn.*\)\n"
    assert re.match(line + r"all before it are good: LLMC_STOP_AFTER=\d+\n$", done.stdout)


def test_a_check_that_a_right_model_meets_finds_nothing(llmc_here: Llmc, tiny_model: Path) -> None:
    done = llmc_here("bisect", tiny_model, "--check", "top1 > 0.99", "--json")
    assert (done.returncode, document(done)["first_bad"]) == (0, None), done.stderr


@pytest.mark.parametrize("text", ["", "max error", "max error < much", "max error < nan", "speed < 3", "kl = 1"])
def test_a_check_that_cannot_be_read_says_how_to_write_one(text: str) -> None:
    with pytest.raises(
        BadOption, match=r"write such as 'max error < 1e-3', with one of max error, rms error, kl, top1"
    ):
        Threshold.parse(text)


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> Expected:
    return Expected.of(partial(source_module, tiny_model), torch.float32, 258)


@pytest.mark.parametrize("part", [0.2, 0.4, 0.6, 0.8, 0.9, 0.99])
def test_a_graph_runs_and_is_right_after_any_number_of_rewrites(
    part: float, tiny_model: Path, expected: Expected, total: int
) -> None:
    model = read(str(tiny_model), None).model
    made = len(run_passes(model, pipeline(), stop_after=int(part * total), prove=False).applied)
    assert made == int(part * total)
    assert expected.compare(graph_logits(model)).passed


@pytest.fixture(scope="module")
def total(tiny_model: Path) -> int:
    return len(run_passes(read(str(tiny_model), None).model, pipeline(), prove=False).applied)
