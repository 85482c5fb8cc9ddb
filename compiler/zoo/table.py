"""The table of the zoo: what becomes of each family, one row a family."""

import importlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from llmc.errors import BuildFailed, NumericsGateFailed, UnsupportedModel
from llmc.zoo.child import in_child
from llmc.zoo.families import NOT_A_DECODER, families

SECONDS = 300.0
MEMORY_BYTES = 6 << 30

COUNTED: Mapping[str, tuple[str, ...]] = {
    "norms": ("llmc.rms_norm", "llmc.layer_norm"),
    "ropes": ("llmc.rope",),
    "attentions": ("llmc.cached_attention",),
    "gated": ("llmc.gated_act",),
    "moes": ("llmc.moe", "llmc.moe_packed"),
}
"""Columns of the table, and the operators that each counts in the compiled graph."""

LEFTOVERS: tuple[str, ...] = (
    "aten.rsqrt", "aten.sqrt", "aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm", "aten.var_mean",
    "aten.silu", "aten.scaled_dot_product_attention",
)  # fmt: skip
"""Operators that a recognised model does not need: where one is left, some idiom was compiled op by op.

Cosines and sines of positions are computed once a step, and a router's softmax is its own; both may stay.
"""


@dataclass(frozen=True)
class Row:
    """What became of one family."""

    family: str
    verdict: str
    """"compiled", "compiled with unfused parts", "refused", "failed", or "not a decoder"."""
    reason: str = ""
    """Why, unless compiled: the error's message."""
    seconds: float = 0.0
    """Compiling alone."""
    ops: Mapping[str, int] = field(default_factory=dict)
    """Operators of the compiled graph, by the columns of COUNTED."""
    unfused: tuple[str, ...] = ()
    """LEFTOVERS in the compiled graph."""
    worst: float = 0.0
    """The largest error of any check, as a part of what is allowed."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Error of each check as a part of what is allowed."""
    native: float | None = None
    """Part of the graph's operators that run as native code; None if no model was compiled."""


def run_zoo(
    names: Iterable[str] = (),
    *,
    seconds: float = SECONDS,
    prove: bool = True,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Compile and check a tiny model of each family (all, when none is named), each in a process of its own.

    Args:
        names: families.
        seconds: limit of each.
        prove: whether rewrites are tested on the subgraphs they replace.
        progress: is told of each row when it is known.
    """
    _import_early()
    rows = []
    for family in list(names) or families():
        if family in NOT_A_DECODER:
            row = Row(family, "not a decoder", NOT_A_DECODER[family])
        else:
            work = partial(_judge_as_dict, family, prove)
            answer = in_child(work, seconds=seconds, memory_bytes=MEMORY_BYTES)
            row = Row(**answer) if "verdict" in answer else Row(family, "failed", answer["error"])
        rows.append(row)
        if progress is not None:
            progress(row)
    return rows


def _judge_as_dict(family: str, prove: bool) -> dict[str, Any]:
    return asdict(judge(family, prove=prove))


def judge(family: str, *, prove: bool = True) -> Row:
    """Compile and check a tiny model of `family` in this process."""
    import torch

    from llmc.zoo.families import tiny

    torch.set_num_threads(1)
    module = tiny(family)
    start = time.perf_counter()
    try:
        return _judge_compiled(family, module, start, prove)
    except UnsupportedModel as error:
        return Row(family, "refused", str(error), time.perf_counter() - start)
    except (BuildFailed, NumericsGateFailed) as error:
        return Row(family, "failed", f"{type(error).__name__}: {error}", time.perf_counter() - start)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"
        return Row(family, "failed", reason, time.perf_counter() - start)


def _judge_compiled(family: str, module: Any, start: float, prove: bool) -> Row:  # noqa: ANN401 - a transformers model
    import llmc
    from llmc.zoo.checks import check

    compiled = llmc.compile(module, prove=prove)
    seconds = time.perf_counter() - start
    counts: Any = compiled.report["ops"]
    by_name: dict[str, int] = {}
    for target, count in counts.items():
        name = target.rpartition(".")[0]
        by_name[name] = by_name.get(name, 0) + count
    ops = {column: sum(by_name.get(name, 0) for name in names) for column, names in COUNTED.items()}
    unfused = tuple(name for name in LEFTOVERS if name in by_name)
    program: Any = compiled.report["program"]
    native = float(program.get("native", 0.0))
    lengths: Any = compiled.report["lengths"]
    vocabulary = compiled.session.facts.vocab_size
    outcomes = check(compiled.session.program, module, vocabulary, lengths.get("shortest", 1))
    worst = max(outcome.ratio for outcome in outcomes)
    errors = {outcome.check: outcome.ratio for outcome in outcomes}
    if not all(outcome.passed for outcome in outcomes):
        wrong = ", ".join(outcome.check for outcome in outcomes if not outcome.passed)
        return Row(family, "failed", f"wrong logits in {wrong}", seconds, ops, unfused, worst, errors, native)
    verdict = "compiled with unfused parts" if unfused else "compiled"
    left = [f"{item['op']} x {item['count']} ({item['reason']})" for item in program.get("torch", ())]
    reason = f"torch computes {', '.join(left)}" if left else str(program.get("reason", ""))
    return Row(family, verdict, reason, seconds, ops, unfused, worst, errors, native)


def _import_early() -> None:
    """Import what every child needs once, before the first fork, and trace something: torch imports much only then."""
    import torch

    from llmc.frontend.export import export

    for name in ("transformers.masking_utils", "transformers.modeling_utils", "llmc.driver"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    export(torch.nn.Embedding(16, 4))


def summary(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows have each verdict."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.verdict] = counts.get(row.verdict, 0) + 1
    return dict(sorted(counts.items()))


def as_json(rows: Iterable[Row]) -> dict[str, object]:
    """The rows and their summary as what JSON knows."""
    rows = list(rows)
    return {"summary": summary(rows), "families": [asdict(row) for row in rows]}
