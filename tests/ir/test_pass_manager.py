"""Running passes: what is counted, written, stopped, and said when one fails."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from support.check_pass import trace
from torch import Tensor

from llmc.bisect import first_bad_rewrite
from llmc.errors import BuildFailed, InvalidGraph, UnsupportedModel
from llmc.ir.model import Model
from llmc.ir.pass_manager import Report, run_passes
from llmc.ir.rewrite import Applied, Rewriter, Rule, apply_rules

aten = torch.ops.aten


@dataclass(frozen=True)
class Silu:
    """Name silu."""

    name: ClassVar[str] = "silu"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        return apply_rules(model, rewriter, [Rule("silu", lambda x: x * torch.sigmoid(x), lambda x: F.silu(x))])


@dataclass(frozen=True)
class Fails:
    """Raise an error."""

    error: Exception
    name: ClassVar[str] = "fails"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        raise self.error


@dataclass(frozen=True)
class Breaks:
    """Leave a graph that is not valid."""

    name: ClassVar[str] = "breaks"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        for node in model.calls(aten.sin.default):
            node.target = torch.sin
        return 1


def _layers(x: Tensor) -> Tensor:
    for _ in range(3):
        x = torch.sin(x * torch.sigmoid(x))
    return x


def _model() -> Model:
    return trace(_layers, torch.randn(3, 8), dynamic={0: [0]})


def test_every_pass_is_counted_and_timed() -> None:
    report = run_passes(_model(), {"recognise": [Silu()], "again": [Silu()]})
    assert [(run.phase, run.name, run.changes, run.rewrites, run.nodes) for run in report.passes] == [
        ("recognise", "silu", 3, 3, 6),
        ("again", "silu", 0, 0, 6),
    ]
    assert [applied.number for applied in report.applied] == [1, 2, 3]
    assert all(run.seconds > 0 for run in report.passes)


def test_the_report_is_plain_data() -> None:
    report = run_passes(_model(), {"recognise": [Silu()]})
    assert json.loads(json.dumps(report.as_dict()))["passes"][0]["name"] == "silu"


def test_progress_hears_of_the_beginning_and_end_of_each_phase() -> None:
    heard: list[tuple[str, bool, dict[str, object]]] = []
    run_passes(
        _model(),
        {"recognise": [Silu()]},
        progress=lambda phase, seconds, facts: heard.append((phase, seconds is None, facts)),
    )
    assert heard == [("recognise", True, {}), ("recognise", False, {"changes": 3, "nodes": 6})]


def test_dumps_are_numbered_and_written_only_on_change(tmp_path: Path) -> None:
    report = run_passes(_model(), {"recognise": [Silu(), Silu()]}, dump=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000-start.py", "001-silu.py"]
    assert report.dumps == [str(tmp_path / "000-start.py"), str(tmp_path / "001-silu.py")]
    first, *rest = (tmp_path / "001-silu.py").read_text().splitlines()
    assert re.fullmatch(r"# silu: 3 changes, \d+\.\d ms", first)
    assert sum("aten.silu(" in line for line in rest) == 3


def test_only_so_many_rewrites_are_made() -> None:
    report = run_passes(_model(), {"recognise": [Silu()]}, stop_after=2)
    assert len(report.applied) == 2
    assert run_passes(_model(), {"recognise": [Silu()]}, stop_after=0).applied == []


def test_a_pass_that_raises_is_named_with_the_graph_before_it(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"pass fails: KeyError: 'x'; the graph before it is .*002-before-fails.py"):
        run_passes(_model(), {"all": [Silu(), Fails(KeyError("x"))]}, dump=tmp_path)
    text = (tmp_path / "002-before-fails.py").read_text()
    assert text.startswith("# the graph before fails, which failed\n")
    assert text.count("aten.silu(") == 3


def test_the_command_that_reproduces_a_failure_is_said(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=rf"LLMC_STOP_AFTER=4 LLMC_DUMP={re.escape(str(tmp_path))}"):
        run_passes(_model(), {"all": [Silu(), Fails(BuildFailed("no"))]}, dump=tmp_path)


def test_without_a_dump_directory_the_failing_graph_goes_to_a_temporary_one() -> None:
    with pytest.raises(BuildFailed) as caught:
        run_passes(_model(), {"all": [Fails(BuildFailed("no"))]})
    path = re.search(r"the graph before it is (\S+);", str(caught.value))
    assert path is not None
    assert "def forward(" in Path(path.group(1)).read_text()


def test_a_model_that_is_not_supported_is_no_failure_of_a_pass() -> None:
    with pytest.raises(UnsupportedModel, match=r"^no such op$"):
        run_passes(_model(), {"all": [Fails(UnsupportedModel("no such op"))]})


def test_an_invalid_graph_is_blamed_on_the_pass_that_left_it() -> None:
    with pytest.raises(InvalidGraph, match="pass breaks: sin: calls <built-in method sin"):
        run_passes(_model(), {"all": [Silu(), Breaks()]})


def _build_with_wrong_rewrite(wrong: int):
    """A build of four layers in which rewrite `wrong` is wrong, made without proof."""

    def build(limit: int | None) -> tuple[Model, list[Applied]]:
        model = trace(lambda x: _layers(_layers(x)), torch.randn(3, 8), dynamic={0: [0]})
        rewriter = Rewriter(model, prove=False, stop_after=limit)

        def replace(x: Any) -> Any:
            return torch.tanh(x) if len(rewriter.applied) + 1 == wrong else F.silu(x)

        apply_rules(model, rewriter, [Rule("silu", lambda x: x * torch.sigmoid(x), replace)])
        return model, rewriter.applied

    return build


X = torch.linspace(-2, 2, 24).reshape(3, 8)


def _is_good(model: Model) -> bool:
    return torch.allclose(model.run(X)[0], _layers(_layers(X)), atol=1e-5)


@pytest.mark.parametrize("wrong", [1, 4, 6])
def test_bisection_finds_a_planted_wrong_rewrite(wrong: int) -> None:
    found = first_bad_rewrite(_build_with_wrong_rewrite(wrong), _is_good)
    assert found is not None
    assert (found.number, found.rule) == (wrong, "silu")


def test_bisection_of_a_good_build_finds_nothing() -> None:
    assert first_bad_rewrite(_build_with_wrong_rewrite(99), _is_good) is None


def test_bisection_says_when_the_fault_is_before_any_rewrite() -> None:
    with pytest.raises(BuildFailed, match="bad before any rewrite"):
        first_bad_rewrite(_build_with_wrong_rewrite(99), lambda model: False)


def test_bisection_finds_the_rewrite_that_fails_its_proof() -> None:
    def build(limit: int | None) -> tuple[Model, list[Applied]]:
        model = _model()
        rewriter = Rewriter(model, stop_after=limit)

        def replace(x: Any) -> Any:
            return torch.tanh(x) if len(rewriter.applied) == 1 else F.silu(x)

        apply_rules(model, rewriter, [Rule("silu", lambda x: x * torch.sigmoid(x), replace)])
        return model, rewriter.applied

    found = first_bad_rewrite(build, lambda model: True)
    assert found is not None
    assert found.number == 2
    assert "rewrite 2, silu, at mul_1" in found.node


def test_a_report_starts_empty() -> None:
    assert Report().as_dict() == {"passes": [], "applied": [], "refused": [], "dumps": []}
