"""Proofs: a wrong replacement is caught, named, and described; a right one is proved once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.check_pass import trace
from torch import Tensor

from llmc.errors import BuildFailed
from llmc.ir.model import Model
from llmc.ir.prove import Kind
from llmc.ir.rewrite import Rewriter, Rule, apply_rules

aten = torch.ops.aten


def _x(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(dtype)


def _replace(model: Model, build: Callable[..., Any], kind: Kind = "reassociating") -> Rewriter:
    """Replace the whole graph of one output."""
    rewriter = Rewriter(model)
    (output,) = model.graph.output_node().args[0]
    rewriter.replace("planted", model.inputs(), [output], build, kind=kind)
    return rewriter


def _refuted(model: Model, build: Callable[..., Any], kind: Kind = "reassociating") -> str:
    with pytest.raises(BuildFailed) as caught:
        _replace(model, build, kind)
    return str(caught.value)


def test_a_right_replacement_is_recorded_with_its_error() -> None:
    rewriter = _replace(trace(lambda x: x * torch.sigmoid(x), _x(3, 8), dynamic={0: [0]}), lambda x: F.silu(x))
    (applied,) = rewriter.applied
    assert (applied.number, applied.rule, applied.node) == (1, "planted", "mul")
    assert 0 <= applied.error < 1e-12


def test_a_wrong_replacement_names_number_rule_node_sizes_and_error() -> None:
    def gated(x: Tensor) -> Tensor:
        y = torch.relu(x)
        return y * torch.sigmoid(y)

    model = trace(gated, _x(3, 8), dynamic={0: [0]})
    right = Rule("right", lambda x: torch.relu(x), lambda x: torch.ops.aten.clamp_min.default(x, 0))
    wrong = Rule("wrong", lambda x: x * torch.sigmoid(x), lambda x: torch.tanh(x))
    rewriter = Rewriter(model)
    with pytest.raises(BuildFailed) as caught:
        apply_rules(model, rewriter, [right, wrong])
    message = str(caught.value)
    assert message.startswith("rewrite 2, wrong, at mul (unknown origin): output 0 differs by ")
    assert "ordinary values)" in message
    assert "LLMC_STOP_AFTER=1 builds without it, `llmc bisect` finds the first bad rewrite" in message


def test_a_failed_proof_leaves_the_graph_alone() -> None:
    model = trace(lambda x: torch.sin(x), _x(3))
    text = str(model.graph)
    _refuted(model, lambda x: torch.cos(x))
    assert str(model.graph) == text


def test_an_epsilon_outside_of_the_root_is_caught() -> None:
    model = trace(lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), _x(3, 64), dynamic={0: [0]})
    message = _refuted(model, lambda x: x / ((x * x).mean(-1, True).sqrt() + 1e-3))
    assert "differs by" in message


def test_a_broadcast_that_is_only_wrong_at_size_one_is_caught() -> None:
    # squeeze drops the first dimension when it is 1; unsqueeze brings back only one of two.
    model = trace(lambda x: x.reshape(x.shape[0], 1, 8), _x(3, 1, 8), dynamic={0: [0]})
    message = _refuted(model, lambda x: torch.ops.aten.squeeze.default(x).unsqueeze(1))
    assert "(s" in message and "=1, " in message


def test_swapped_dimensions_are_caught_when_sizes_differ() -> None:
    model = trace(lambda x: x + x.transpose(0, 1), _x(4, 4))
    assert "differs by" in _refuted(model, lambda x: x + x)


def test_a_cast_in_the_wrong_place_is_caught_in_the_dtype_of_the_model() -> None:
    model = trace(lambda x: (x.float() - x.float() * 0.99).to(torch.bfloat16), _x(7, 256, dtype=torch.bfloat16))
    message = _refuted(model, lambda x: x - x * 0.99)
    assert "rounds worse in bfloat16" in message


def test_rounding_better_than_the_original_is_fine() -> None:
    model = trace(lambda x: x - x * 0.99, _x(7, 256, dtype=torch.bfloat16))
    rewriter = _replace(model, lambda x: (x.float() - x.float() * 0.99).to(torch.bfloat16))
    assert len(rewriter.applied) == 1


def test_an_exact_rewrite_must_be_bit_equal() -> None:
    def product(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x * y * z

    examples = _x(5, 64), _x(5, 64), _x(5, 64)
    assert "is not bit-equal" in _refuted(trace(product, *examples), lambda x, y, z: x * (y * z), "exact")
    assert len(_replace(trace(product, *examples), lambda x, y, z: x * (y * z)).applied) == 1
    assert len(_replace(trace(product, *examples), lambda x, y, z: y * x * z, "exact").applied) == 1


def test_a_new_nan_is_caught() -> None:
    model = trace(lambda x: torch.relu(x), _x(5, 64))
    assert "NaN or infinity" in _refuted(model, lambda x: x * x / x * torch.sigmoid(x * 1e30))


def test_another_dtype_or_shape_is_caught_before_anything_runs() -> None:
    model = trace(lambda x: torch.sin(x), _x(3, 8), dynamic={0: [0]})
    assert "gives bf16[s" in _refuted(model, lambda x: torch.sin(x).bfloat16())
    assert "gives f32[8, " in _refuted(model, lambda x: torch.sin(x).permute(1, 0))


def test_a_wrong_number_of_outputs_is_caught() -> None:
    model = trace(lambda x: torch.sin(x), _x(3))
    assert "returns 2 values; expected 1" in _refuted(model, lambda x: (torch.sin(x), x))


def test_indices_are_drawn_inside_of_the_table_they_index() -> None:
    model = trace(lambda ids, table: F.embedding(ids, table), torch.tensor([0, 2]), _x(3, 8), dynamic={0: [0]})
    rewriter = _replace(model, lambda ids, table: torch.ops.aten.index_select.default(table, 0, ids))
    assert rewriter.applied[0].error == 0.0


def test_indices_shifted_before_their_use_are_drawn_small_enough() -> None:
    model = trace(lambda ids, table: F.embedding(ids + 2, table), torch.tensor([0, 2]), _x(6, 8), dynamic={0: [0]})
    rewriter = _replace(model, lambda ids, table: torch.ops.aten.embedding.default(table, 2 + ids))
    assert len(rewriter.applied) == 1


def test_integers_must_be_equal() -> None:
    model = trace(lambda x: torch.topk(x, 3).indices, _x(5, 64))
    assert "differs in integers" in _refuted(model, lambda x: torch.ops.aten.topk.default(x, 3, 1, False)[1])


def test_a_dimension_in_blocks_is_proved_at_larger_sizes() -> None:
    def blocks(x: Tensor) -> Tensor:
        torch._check(x.shape[0] % 8 == 0)
        return x.reshape(x.shape[0] // 8, 8, 4).sum(1)

    model = trace(blocks, _x(24, 4), dynamic={0: [0]})
    (output,) = model.graph.output_node().args[0]
    rewriter = Rewriter(model)
    rewriter.replace("same", list(output.args[0].all_input_nodes), [output], lambda x, *_: _block_sum(x))
    assert len(rewriter.applied) == 1


def _block_sum(x: Any) -> Any:
    return x.reshape(x.shape[0] // 8, 8, 4).transpose(1, 2).sum(2)


def test_equal_layers_are_proved_once() -> None:
    def layers(x: Tensor) -> Tensor:
        for _ in range(8):
            x = torch.sin(x * torch.sigmoid(x))
        return x

    model = trace(layers, _x(3, 8), dynamic={0: [0]})
    rewriter = Rewriter(model)
    rule = Rule("silu", lambda x: x * torch.sigmoid(x), lambda x: F.silu(x))
    assert apply_rules(model, rewriter, [rule]) == 8
    assert len(rewriter._prover.proved) == 1


def test_without_proof_nothing_is_run() -> None:
    model = trace(lambda x: torch.sin(x), _x(3))
    rewriter = Rewriter(model, prove=False)
    assert rewriter.replace("wrong", model.inputs(), list(model.calls()), lambda x: torch.cos(x))
    assert rewriter.applied[0].error == 0.0


@pytest.mark.slow
def test_a_layer_of_three_billion_parameters_is_proved_in_seconds_and_little_memory() -> None:
    import resource

    def gate_up(x: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(x, gate), F.linear(x, up)

    with torch.device("meta"):
        weights = [torch.empty(8192, 3072, dtype=torch.bfloat16) for _ in range(2)]
        model = trace(gate_up, torch.empty(3, 3072, dtype=torch.bfloat16), *weights, dynamic={0: [0]})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first, second = model.calls(aten.linear.default)
    rewriter = Rewriter(model)

    def merged(x: Any, gate: Any, up: Any) -> Any:
        return tuple(torch.ops.aten.linear.default(x, torch.cat([gate, up])).split([8192, 8192], -1))

    assert rewriter.replace("merge", model.inputs(), [first, second], merged)
    assert rewriter.applied[0].seconds < 20  # about 2 on an idle core; the machine may be shared
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6 < 1.5
