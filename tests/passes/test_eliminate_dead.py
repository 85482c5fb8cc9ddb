"""What nothing reads is removed."""

import torch
from torch import nn

from llmc.ir.infer import fake_mode, infer
from llmc.ir.model import Model, Origin
from llmc.ir.rewrite import Rewriter
from llmc.passes.eliminate_dead import EliminateDead
from tests.support.check_pass import check_pass, op_counts, trace


def test_what_is_read_is_left_alone() -> None:
    check_pass(EliminateDead(), nn.Linear(4, 3), torch.randn(2, 4), changes=0, counts={"linear": 1})


def _append(model: Model, target: object, *args: object) -> None:
    with model.graph.inserting_before(model.graph.output_node()):
        node = model.graph.call_function(target, args)
    node.meta.update(val=infer(fake_mode(model.graph), target, args, {}), origin=Origin("test"))


def test_chains_that_nothing_reads_and_their_weights_are_removed() -> None:
    model = trace(nn.Linear(4, 3), torch.randn(2, 4))
    linear = next(model.calls())
    _append(model, torch.ops.aten.mul.Tensor, linear.args[1], 2)
    _append(model, torch.ops.aten.neg.default, list(model.calls())[-1])
    linear.args = linear.args[:2]
    assert EliminateDead().run(model, Rewriter(model)) == 3
    assert op_counts(model) == {"linear": 1}
    assert list(model.weights) == ["weight"]


def test_calls_that_write_an_argument_stay() -> None:
    model = trace(lambda x: x * 2, torch.randn(2, 4))
    _append(model, torch.ops.aten.add_.Tensor, next(model.calls()), 1)
    assert EliminateDead().run(model, Rewriter(model)) == 0
