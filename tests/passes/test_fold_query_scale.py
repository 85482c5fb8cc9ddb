"""Factors of queries go into the scale of attention."""

from collections.abc import Callable

import pytest
import torch
from support.check_pass import check_pass, op_counts
from torch import Tensor

from llmc.passes.canonicalize import Canonicalize
from llmc.passes.fold_query_scale import FoldQueryScale

Q = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0))
K = torch.randn(1, 3, 5, 4, generator=torch.Generator().manual_seed(1))
DYNAMIC = {0: [1], 1: [2]}


def attend(q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
    heads = q.reshape(1, q.shape[1], 3, 4).transpose(1, 2)
    out: Tensor = torch.ops.llmc.attention(heads, k, k, None, None, scale, 0.0, True)
    return out


def check(function: Callable[[Tensor, Tensor], object], multiplied: int) -> None:
    model = check_pass([Canonicalize(), FoldQueryScale()], function, Q, K, dynamic=DYNAMIC)
    assert op_counts(model).get("mul", 0) == multiplied


def test_queries_without_a_factor_are_left_alone() -> None:
    check_pass(FoldQueryScale(), attend, Q, K, dynamic=DYNAMIC, changes=0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_factor_before_heads_are_parted_is_folded(scale: float) -> None:
    check(lambda q, k: attend(q * 0.3, k, scale), 0)


def test_a_product_that_something_else_reads_stays() -> None:
    def both(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        scaled = q * 0.3
        return attend(scaled, k), scaled

    check(both, 1)


def test_a_factor_for_each_feature_stays() -> None:
    check(lambda q, k: attend(q * torch.arange(12.0), k), 1)
