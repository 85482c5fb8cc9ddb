"""Permutations that undo each other around rotations, norms and pointwise ops."""

from collections.abc import Callable

import torch
from support.check_pass import check_pass, op_counts, trace
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
    check_pass(CancelPermutes(), model, X, TABLE, dynamic=DYNAMIC, changes=changes)
    Canonicalize().run(model, Rewriter(model))
    assert op_counts(model) == counts


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


def test_parts_are_done_in_place_when_every_one_is_permuted_back() -> None:
    def parts(x: Tensor, t: Tensor) -> Tensor:
        kept, turned = x.transpose(0, 1).split([2, 4], dim=-1)
        turned = torch.ops.llmc.rope(turned, t[:, 2:], t[:, 2:], False)
        return torch.cat((kept, turned), dim=-1).transpose(0, 1)

    counts = {"cat": 1, "getitem": 2, "reshape": 2, "rope": 1, "slice": 2, "split_with_sizes": 1}
    check(parts, 1, counts)


def test_two_permuted_values_that_meet_are_done_in_place() -> None:
    check(
        lambda x, t: t[:, None] * (x.transpose(0, 1) * torch.exp(x).transpose(0, 1)).transpose(0, 1),
        1,
        {"exp": 1, "mul": 2, "unsqueeze": 1},
    )


def test_a_part_that_stays_permuted_keeps_the_others_so() -> None:
    def parts(x: Tensor, t: Tensor) -> Tensor:
        first, second = x.transpose(0, 1).split([3, 3], dim=-1)
        return torch.relu(first).transpose(0, 1) + second.sum(0)[:, None]

    check(parts, 0, {"add": 1, "getitem": 2, "permute": 2, "relu": 1, "split_with_sizes": 1, "sum": 1, "unsqueeze": 1})
