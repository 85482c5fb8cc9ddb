"""Permutations that undo each other around rotations, norms and pointwise ops."""

from collections.abc import Callable

import torch
from support.check_pass import check_pass, trace
from torch import Tensor

from llmc.ir.rewrite import Rewriter
from llmc.passes.cancel_permutes import CancelPermutes
from llmc.passes.canonicalize import Canonicalize

X = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
TABLE = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
DYNAMIC = {0: [0], 1: [0]}


def check(function: Callable[..., Tensor], changes: int, counts: dict[str, int]) -> None:
    model = trace(function, X, TABLE, dynamic=DYNAMIC)
    Canonicalize().run(model, Rewriter(model))
    check_pass([CancelPermutes(), Canonicalize()], model, X, TABLE, dynamic=DYNAMIC, counts=counts)
    assert CancelPermutes().run(model, Rewriter(model)) == 0
    assert changes == (0 if counts.get("permute") else 1)


def test_a_permutation_that_is_kept_is_left_alone() -> None:
    check(lambda x, t: torch.relu(x.transpose(0, 1)) * t, 0, {"mul": 1, "permute": 1, "relu": 1})


def test_a_rotation_between_is_done_in_place() -> None:
    def turned(x: Tensor, t: Tensor) -> Tensor:
        return torch.ops.llmc.rope(x.transpose(0, 1), t, t, False).transpose(0, 1)  # type: ignore[no-any-return]

    check(turned, 1, {"reshape": 2, "rope": 1})


def test_norms_and_factors_between_are_done_in_place() -> None:
    def scaled(x: Tensor, t: Tensor) -> Tensor:
        normed = torch.ops.llmc.rms_norm(x.transpose(0, 1), t[0], 1e-5, 0.0, False)
        return (normed * 0.5 * t[None]).transpose(0, 1)

    check(scaled, 1, {"mul": 2, "reshape": 1, "rms_norm": 1, "select": 1, "unsqueeze": 1})


def test_a_norm_over_what_is_permuted_is_left_alone() -> None:
    def across(x: Tensor, t: Tensor) -> Tensor:
        turned = torch.ops.llmc.rms_norm(x.transpose(1, 2), None, 1e-5, 0.0, False).transpose(1, 2)
        return turned * t[:, None]

    check(across, 0, {"mul": 1, "permute": 2, "rms_norm": 1, "unsqueeze": 1})


def test_another_large_operand_is_not_permuted_instead() -> None:
    def added(x: Tensor, t: Tensor) -> Tensor:
        other = torch.ops.aten.permute(x * 2, [1, 0, 2])
        return (torch.relu(x.transpose(0, 1)) + torch.exp(other)).transpose(0, 1) * t[:, None]

    check(added, 0, {"add": 1, "exp": 1, "mul": 2, "permute": 3, "relu": 1, "unsqueeze": 1})


def test_a_value_that_is_used_elsewhere_is_left_alone() -> None:
    def shared(x: Tensor, t: Tensor) -> Tensor:
        value = torch.relu(x.transpose(0, 1))
        return value.transpose(0, 1) * value.sum() * t[:, None]

    check(shared, 0, {"mul": 2, "permute": 2, "relu": 1, "sum": 1, "unsqueeze": 1})
