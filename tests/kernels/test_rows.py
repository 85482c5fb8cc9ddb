"""Reductions and scans of single rows, and their largest elements."""

import pytest
import torch
from support.native import ISAS, Isa
from support.native_rows import SIZES, pointer, row_kernels, size, strided

isas = pytest.mark.parametrize("isa", ISAS)
REFERENCES = (
    lambda x: x.sum(-1), lambda x: x.mean(-1), lambda x: x.amax(-1), lambda x: x.amin(-1),
    lambda x: x.softmax(-1), lambda x: x.log_softmax(-1), lambda x: x.cumsum(-1),
)  # fmt: skip


def reduce(isa: Isa, which: int, x: torch.Tensor) -> torch.Tensor:
    y = torch.empty(1 if which < 4 else x.numel())
    row_kernels(isa).reduce(which, pointer(x), size(x.numel()), size(1), pointer(y), size(1))
    return y[0] if which < 4 else y


@isas
@pytest.mark.parametrize("steps", [(1, 1), (3, 2)])
def test_reductions(isa: Isa, steps: tuple[int, int]) -> None:
    for n in SIZES:
        buffer, x = strided(n, steps[0], seed=n)
        for which, reference in enumerate(REFERENCES):
            y = torch.zeros(1 if which < 4 else (n - 1) * steps[1] + 1)
            sizes = size(n), size(steps[0])
            row_kernels(isa).reduce(which, pointer(buffer), *sizes, pointer(y), size(steps[1]))
            found = y[0] if which < 4 else y[:: steps[1]]
            torch.testing.assert_close(found.double(), reference(x.double()), rtol=2e-6, atol=5e-5)


@isas
def test_hidden_scores_and_nans(isa: Isa) -> None:
    x = torch.randn(40)
    x[::2] = -torch.inf
    assert torch.equal(reduce(isa, 4, x)[::2], torch.zeros(20))
    assert reduce(isa, 3, x) == -torch.inf and reduce(isa, 2, x) == x.max()
    assert reduce(isa, 2, torch.full((40,), torch.inf)) == torch.inf
    for place in (0, 17, 39):
        x[place] = torch.nan
        assert all(reduce(isa, which, x).isnan().any() for which in range(7))
        x[place] = 0


@isas
def test_integers(isa: Isa) -> None:
    for n in (1, 16, 17, 100):
        x, y = torch.randint(-50, 50, (3 * n,)), torch.empty(3 + n, dtype=torch.int64)
        row_kernels(isa).reduce_int(pointer(x), size(n), size(3), pointer(y))
        row = x[::3]
        assert torch.equal(y, torch.cat((row.sum()[None], row.max()[None], row.min()[None], row.cumsum(0))))


@isas
def test_topk(isa: Isa) -> None:
    for n in (1, 2, 7, 16, 33, 128):
        for k in {1, min(2, n), min(8, n), n}:
            buffer, x = strided(n, 2, seed=n * k)
            x[::3] = x[0]  # ties
            values, indices = torch.empty(k), torch.empty(k, dtype=torch.int64)
            row_kernels(isa).top(pointer(buffer), size(2), size(n), k, pointer(values), pointer(indices))
            order = torch.sort(x, descending=True, stable=True)
            assert torch.equal(values, order.values[:k]) and torch.equal(indices, order.indices[:k])
    x = torch.tensor([1.0, torch.nan, torch.inf, torch.nan])
    values, indices = torch.empty(3), torch.empty(3, dtype=torch.int64)
    row_kernels(isa).top(pointer(x), size(1), size(4), 3, pointer(values), pointer(indices))
    assert indices.tolist() == [1, 3, 2]
