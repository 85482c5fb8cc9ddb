"""Tensors written part by part become a `cat`."""

from collections.abc import Callable

import torch
from support.check_pass import check_pass, op_counts, trace
from torch import Tensor

from llmc.ir.rewrite import Rewriter
from llmc.passes.canonicalize import Canonicalize
from llmc.passes.eliminate_dead import EliminateDead
from llmc.passes.join_writes import JoinWrites

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
DYNAMIC = {0: [0]}
PARTIAL = "the parts written do not make up the 8 elements of dimension 1"


def check(function: Callable[[Tensor], Tensor], changes: int, refused: tuple[str, ...] = ()) -> dict[str, int]:
    model = trace(function, X, dynamic=DYNAMIC)
    Canonicalize().run(model, Rewriter(model))
    check_pass(JoinWrites(), model, X, dynamic=DYNAMIC, changes=changes, refused=refused)
    EliminateDead().run(model, Rewriter(model))
    return op_counts(model)


def written(first: int, second: int) -> Callable[[Tensor], Tensor]:
    def write(x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], 8)
        y[:, :first] = x[:, :first] * 2
        y[:, second:] = x[:, second:].exp()
        return y

    return write


def test_a_part_of_a_value_is_written_as_it_was() -> None:
    def write(x: Tensor) -> Tensor:
        y = x * 2
        y[:, 2:4] = x[:, 2:4]
        return y

    assert check(write, changes=1, refused=(PARTIAL,))["slice_scatter"] == 1


def test_a_value_written_in_two_parts_is_joined() -> None:
    counts = check(written(3, 3), changes=3)
    assert counts == {"cat": 1, "exp": 1, "mul": 1, "slice": 2}


def test_parts_with_a_gap_are_left_alone() -> None:
    check(written(3, 4), changes=2, refused=(PARTIAL,))


def test_parts_that_overlap_are_left_alone() -> None:
    check(written(4, 3), changes=2, refused=(PARTIAL,))


def test_a_broadcast_part_is_expanded() -> None:
    def write(x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], 8)
        y[:, :3] = x[:, :1]
        y[:, 3:] = x[:, 3:]
        return y

    assert check(write, changes=3) == {"cat": 1, "expand": 1, "slice": 2}
