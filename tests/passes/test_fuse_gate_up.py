"""One projection for gate and up."""

import torch
from support.check_pass import check_pass, op_counts, trace
from torch import Tensor, nn

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes.canonicalize import Canonicalize
from llmc.passes.fuse_gate_up import FuseGateUp

X = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0))
DYNAMIC = {0: [1]}


class Gated(nn.Module):
    """A gated activation of two projections."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_proj = nn.Linear(12, 8, bias=False)
        self.up_proj = nn.Linear(12, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.llmc.gated_act(self.gate_proj(x), self.up_proj(x), "silu")  # type: ignore[no-any-return]


def check(module: nn.Module, changes: int, refused: tuple[str, ...] = ()) -> Model:
    model = trace(module, X, dynamic=DYNAMIC)
    Canonicalize().run(model, Rewriter(model))
    return check_pass(FuseGateUp(), model, X, dynamic=DYNAMIC, changes=changes, refused=refused)


def test_halves_of_one_projection_are_left_alone() -> None:
    class Chunked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Linear(12, 16)

        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.gate_up_proj(x).split([8, 8], dim=-1)
            return torch.ops.llmc.gated_act(gate, up, "silu")  # type: ignore[no-any-return]

    check(Chunked(), changes=0)


def test_gate_and_up_become_one() -> None:
    counts = op_counts(check(Gated(), changes=1))
    assert counts == {"cat": 1, "gated_act": 1, "getitem": 2, "linear": 1, "split_with_sizes": 1}


def test_multipliers_and_limits_lie_between() -> None:
    class Scaled(Gated):
        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.gate_proj(x) * 1.5, self.up_proj(x).clamp(-1, 1)
            return torch.ops.llmc.gated_act(gate, up, "gelu")  # type: ignore[no-any-return]

    assert op_counts(check(Scaled(), changes=1))["linear"] == 1


def test_gate_and_up_of_different_inputs_are_left_alone() -> None:
    class Apart(Gated):
        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.gate_proj(x), self.up_proj(torch.relu(x))
            return torch.ops.llmc.gated_act(gate, up, "silu")  # type: ignore[no-any-return]

    check(Apart(), changes=0, refused=("up_proj reads relu, gate_proj reads x",))


def test_weights_of_different_dtypes_are_left_alone() -> None:
    class Mixed(Gated):
        def forward(self, x: Tensor) -> Tensor:
            gate = self.gate_proj(x)
            up = nn.functional.linear(x.double(), self.up_proj.weight).float()
            return torch.ops.llmc.gated_act(gate, up, "silu")  # type: ignore[no-any-return]

    module = Mixed()
    module.up_proj = module.up_proj.double()
    refused = ("linear_1 reads to_copy, gate_proj reads x",)
    model = trace(module, X, dynamic=DYNAMIC)
    Canonicalize().run(model, Rewriter(model))
    rewriter = Rewriter(model)
    assert FuseGateUp().run(model, rewriter) == 0
    assert len(rewriter.refused) == len(refused)
