"""A wrong rewrite is found by its number, whatever else is rewritten around it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llmc.bisect_model import bisect_model
from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter, Rule, apply_rules
from llmc.ir.tracing import aten
from llmc.pipeline import pipeline


@dataclass(frozen=True)
class Clip:
    """Takes relu for silu, in every layer: wrong, and not seen unless it is proved or compared."""

    name: ClassVar[str] = "clip"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        clip = Rule("clip", find=lambda x: aten.silu.default(x), replace=lambda x: aten.relu.default(x))
        return apply_rules(model, rewriter, [clip])


def test_a_right_model_has_no_bad_rewrite(tiny_model: Path) -> None:
    told: list[str] = []
    found = bisect_model(str(tiny_model), progress=lambda phase, seconds, info: told.append(phase))
    assert (found.first_bad, found.builds) == (None, 1)
    assert found.rewrites > 5
    assert told == ["build", "good"]


def test_the_first_wrong_rewrite_is_named(tiny_model: Path) -> None:
    phases = dict(pipeline())
    phases["tidy"] = (*phases["tidy"], Clip())
    found = bisect_model(str(tiny_model), phases=phases)
    assert found.first_bad is not None
    assert (found.first_bad.rule, "layers.0.mlp" in found.first_bad.origin) == ("clip", True)
    assert found.first_bad.number < found.rewrites
    assert found.builds < 10
