"""Rules and the one door: what fires, what is refused and why, where the new nodes stand."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from support.check_pass import check_pass, op_counts, trace
from torch import Tensor, fx, nn

from llmc.errors import BuildFailed, InvalidGraph
from llmc.ir.match import Match, named, shared
from llmc.ir.model import Model, Origin
from llmc.ir.rewrite import Rewriter, Rule, apply_rules
from llmc.ir.verify import verify

aten = torch.ops.aten


@dataclass(frozen=True)
class Apply:
    """Runs rules as a pass."""

    rules: tuple[Rule, ...]
    name: ClassVar[str] = "apply"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        return apply_rules(model, rewriter, self.rules)


SILU = Rule("silu", lambda x: x * torch.sigmoid(x), lambda x: F.silu(x))


def _rms(x: Any, w: Any, eps: float) -> Any:
    wide = x.float()
    return w * (wide * torch.rsqrt((wide * wide).mean(-1, True) + eps)).to(torch.bfloat16)


def _positive_eps(match: Match) -> str | None:
    return None if match["eps"] > 0 else f"eps is {match['eps']}, not positive"


RMS_NORM = Rule(
    "rms_norm",
    find=_rms,
    unless=_positive_eps,
    replace=lambda x, w, eps: torch.ops.llmc.rms_norm.default(x, w, eps, 0.0, False),
)


class Norm(nn.Module):
    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 16).bfloat16())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def _x(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_a_graph_without_the_pattern_is_left_alone() -> None:
    check_pass(Apply((SILU,)), lambda x, y: x * torch.sigmoid(y), _x(3, 8), _x(3, 8), changes=0, refused=[])


def test_a_rule_replaces_every_place_where_it_fits() -> None:
    check_pass(
        Apply((SILU,)),
        lambda x, y: (x * torch.sigmoid(x)) + torch.sigmoid(y) * y,
        _x(3, 8),
        _x(3, 8),
        dynamic={0: [0], 1: [0]},
        changes=2,
        refused=[],
        text="silu = aten.silu(x)\nsilu_1 = aten.silu(y)\nadd = aten.add(silu, silu_1)\nreturn (add,)",
    )


def test_a_value_used_elsewhere_is_a_near_miss() -> None:
    def before(x: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(x)
        return x * gate, gate

    check_pass(
        Apply((SILU,)),
        before,
        _x(3, 8),
        changes=0,
        refused=["sigmoid is also used elsewhere"],
        counts={"mul": 1, "sigmoid": 1},
    )


def test_a_value_marked_as_shared_may_be_used_elsewhere_and_is_kept() -> None:
    rule = Rule("silu", lambda x: x * shared(torch.sigmoid(x)), lambda x: F.silu(x))

    def before(x: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(x)
        return x * gate, gate

    check_pass(Apply((rule,)), before, _x(3, 8), changes=1, refused=[], counts={"sigmoid": 1, "silu": 1})


def test_the_reason_of_unless_is_recorded_once_with_rule_node_and_origin() -> None:
    model = trace(Norm(eps=0.0), _x(3, 16, dtype=torch.bfloat16), dynamic={0: [0]})
    rewriter = Rewriter(model)
    assert apply_rules(model, rewriter, [RMS_NORM]) == 0
    assert apply_rules(model, rewriter, [RMS_NORM]) == 0
    assert [(near.rule, near.reason) for near in rewriter.refused] == [("rms_norm", "eps is 0.0, not positive")]


def test_scalars_dimensions_and_dtypes_match_by_value() -> None:
    model = check_pass(
        Apply((RMS_NORM,)), Norm(), _x(3, 16, dtype=torch.bfloat16), dynamic={0: [0]}, counts={"rms_norm": 1}
    )
    (norm,) = model.calls(torch.ops.llmc.rms_norm.default)
    assert norm.args[2:] == (1e-5, 0.0, False)
    assert norm.meta["val"].dtype == torch.bfloat16


def test_a_positive_dimension_in_the_graph_matches_a_negative_one_in_the_pattern() -> None:
    rule = Rule("mean", lambda x: aten.mean.dim(x, [-1], True), lambda x: x.sum(-1, True) / 8)
    check_pass(Apply((rule,)), lambda x: x.mean(2, keepdim=True), _x(2, 3, 8), changes=1, counts={"div": 1, "sum": 1})
    check_pass(Apply((rule,)), lambda x: x.mean(1, keepdim=True), _x(2, 3, 8), changes=0)


def test_alternatives_may_lack_a_parameter() -> None:
    rule = Rule(
        "linear",
        [lambda x, w, b: (x @ w) + b, lambda x, w: x @ w],
        lambda x, w, b: torch.ops.aten.linear.default(x, w.permute(1, 0), b),
    )
    check_pass(
        Apply((rule,)), lambda x, w, b: (x @ w + b) @ w, _x(3, 8), _x(8, 8), _x(8),
        changes=2, counts={"linear": 2, "permute": 2},
    )  # fmt: skip


def test_annotated_parameters_bind_only_their_kind() -> None:
    def find(x: Tensor, scale: float) -> Any:
        return x * scale

    rule = Rule("scale", find, lambda x, scale: x / (1 / scale))
    check_pass(Apply((rule,)), lambda x, y: x * y * 0.5, _x(3), _x(3), changes=1, counts={"div": 1, "mul": 1})


def test_inner_values_can_be_asked_for_by_name() -> None:
    seen: list[torch.Size] = []

    def unless(match: Match) -> str | None:
        seen.append(match.val("gate").shape)
        return "only looking"

    rule = Rule("look", lambda x, y: y * named(torch.sigmoid(x), "gate"), lambda x, y: x, unless)
    check_pass(Apply((rule,)), lambda x, y: y * torch.sigmoid(x), _x(3, 8), _x(3, 8), changes=0)
    assert seen[0] == (3, 8)


def test_a_pattern_may_return_several_values() -> None:
    def find(x: Any, y: Any) -> Any:
        total = x + y
        return total, torch.relu(total)

    def replace(x: Any, y: Any) -> Any:
        total = y + x
        return total, torch.ops.aten.clamp_min.default(total, 0)

    def before(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        total = x + y
        return torch.relu(total), total * 2

    check_pass(Apply((Rule("pair", find, replace),)), before, _x(3), _x(3), counts={"add": 1, "clamp_min": 1, "mul": 1})


def test_rules_that_undo_each_other_are_stopped_by_name() -> None:
    model = trace(lambda x, y: x * y, _x(3), _x(3))
    swap = Rule("swap", lambda x, y: x * y, lambda x, y: y * x)
    with pytest.raises(BuildFailed, match="swap: still firing after 64 sweeps"):
        apply_rules(model, Rewriter(model, prove=False), [swap])


def test_nothing_is_rewritten_once_the_limit_is_reached() -> None:
    model = trace(lambda x: torch.sin(x * torch.sigmoid(x)) * torch.sigmoid(torch.sin(x * torch.sigmoid(x))), _x(3))
    rewriter = Rewriter(model, stop_after=1)
    assert apply_rules(model, rewriter, [SILU]) == 1
    assert rewriter.stopped
    assert [applied.number for applied in rewriter.applied] == [1]


class Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.q_proj(x)), self.k_proj(x)


def _merge(x: Any, wq: Any, wk: Any) -> Any:
    q, k = torch.ops.aten.linear.default(x, torch.cat([wq, wk])).split([8, 4], -1)
    return q, k


def _linears(model: Model) -> list[fx.Node]:
    return list(model.calls(aten.linear.default))


def test_several_outputs_are_replaced_before_their_first_user() -> None:
    model = trace(Projections(), _x(3, 8), dynamic={0: [0]})
    before = model.run(_x(3, 8))
    q, k = _linears(model)
    assert Rewriter(model).replace("merge", [q.args[0], q.args[1], k.args[1]], [q, k], _merge)
    verify(model)
    assert op_counts(model) == {"cat": 1, "getitem": 2, "linear": 1, "relu": 1, "split_with_sizes": 1}
    for have, want in zip(model.run(_x(3, 8)), before, strict=True):
        torch.testing.assert_close(have, want)


def test_merged_nodes_name_all_their_origins_and_results_their_own() -> None:
    model = trace(Projections(), _x(3, 8), dynamic={0: [0]})
    q, k = _linears(model)
    Rewriter(model).replace("merge", [q.args[0], q.args[1], k.args[1]], [q, k], _merge)
    origins = {node.name: node.meta["origin"] for node in model.calls()}
    assert origins["linear_2"] == Origin("{q_proj,k_proj}")
    assert [origins["getitem"], origins["getitem_1"]] == [Origin("q_proj"), Origin("k_proj")]


def test_users_that_stand_before_a_late_input_move_behind_it() -> None:
    def before(x: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        early = torch.relu(F.linear(x, w))
        late_weight = torch.sin(v)
        return early, F.linear(x, late_weight)

    model = trace(before, _x(3, 8), _x(8, 8), _x(4, 8), dynamic={0: [0]})
    want = model.run(_x(3, 8), _x(8, 8), _x(4, 8))
    q, k = _linears(model)
    assert Rewriter(model).replace("merge", [q.args[0], q.args[1], k.args[1]], [q, k], _merge)
    verify(model)
    for have, wanted in zip(model.run(_x(3, 8), _x(8, 8), _x(4, 8)), want, strict=True):
        torch.testing.assert_close(have, wanted)


def test_an_input_computed_from_an_output_is_a_near_miss() -> None:
    model = trace(lambda x, w: F.linear(F.linear(x, w), w), _x(3, 8), _x(8, 8))
    first, second = _linears(model)
    rewriter = Rewriter(model)
    x, w = model.inputs()
    assert not rewriter.replace("merge", [x, w, second], [first], lambda a, b, c: a)
    assert [near.reason for near in rewriter.refused] == ["linear_1 is computed from what would be replaced"]


def test_an_output_that_is_an_input_is_refused() -> None:
    model = trace(lambda x: torch.relu(x), _x(3))
    (relu,) = model.calls()
    with pytest.raises(InvalidGraph, match="relu: an output is also an input"):
        Rewriter(model).replace("r", [relu], [relu], lambda x: x)


def test_a_missing_input_is_named() -> None:
    model = trace(lambda x, y: x * y, _x(3), _x(3))
    (mul,) = model.calls()
    with pytest.raises(InvalidGraph, match="mul: computed from y, which is not among the inputs x"):
        Rewriter(model).replace("r", [model.inputs()[0]], [mul], lambda x: x)


def test_the_identity_can_be_removed() -> None:
    rule = Rule("neg_neg", lambda x: torch.neg(torch.neg(x)), lambda x: x, kind="exact")
    check_pass(Apply((rule,)), lambda x: torch.neg(torch.neg(torch.sin(x))), _x(3), changes=1, counts={"sin": 1})


def test_symbolic_sizes_on_the_way_need_not_be_inputs() -> None:
    def find(x: Any, shape: list[Any]) -> Any:
        return torch.ops.aten.view.default(torch.relu(x), shape)

    def replace(x: Any, shape: list[Any]) -> Any:
        return torch.relu(torch.ops.aten.reshape.default(x, shape))

    def before(x: Tensor) -> Tensor:
        return torch.relu(x).reshape(x.shape[0], 2, 4)

    check_pass(
        Apply((Rule("swap", find, replace),)), before, _x(3, 8), dynamic={0: [0]},
        text="sym_size = x.shape[0]\n"
        "reshape = aten.reshape(x, [sym_size, 2, 4])\nrelu_1 = aten.relu(reshape)\nreturn (relu_1,)",
    )  # fmt: skip


def test_a_replacement_may_use_the_shape_of_its_inputs() -> None:
    model = trace(lambda x: torch.exp(x), _x(3, 8), dynamic={0: [0]})
    (exp,) = model.calls()

    def build(x: Any) -> Any:
        return x.reshape(x.shape[0] * x.shape[1]).exp().reshape(*x.shape)

    assert Rewriter(model).replace("shaped", model.inputs(), [exp], build)
    assert op_counts(model) == {"exp": 1, "mul": 1, "reshape": 2, "sym_size": 2}


def test_an_unknown_function_in_a_pattern_is_refused_by_name() -> None:
    with pytest.raises(InvalidGraph, match=r"torch.fft_fft: not traced; use a torch.ops.aten overload"):
        Rule("fft", lambda x: torch.fft.fft(x), lambda x: x).patterns()


def test_a_parameter_that_the_pattern_ignores_is_refused() -> None:
    with pytest.raises(InvalidGraph, match="parameter 'y' is not used"):
        Rule("r", lambda x, y: torch.relu(x), lambda x: x).patterns()


def test_shapes_cannot_be_asked_for_in_a_pattern() -> None:
    with pytest.raises(InvalidGraph, match="shape and dtype are not known in a pattern"):
        Rule("r", lambda x: torch.relu(x) * x.shape[0], lambda x: x).patterns()


def test_an_op_with_side_effects_cannot_be_replaced() -> None:
    model = trace(lambda x: torch.relu(x), _x(3))
    (relu,) = model.calls()
    relu.target = aten.relu_.default
    with pytest.raises(InvalidGraph, match=r"relu: relu \(aten.relu_.default\) has side effects"):
        Rewriter(model).replace("r", model.inputs(), [relu], lambda x: x)
