"""Index arithmetic as formulas: each rule against the tensor that eager torch gives, element by element."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from support.check_pass import trace
from torch import Tensor, nn

from llmc.ir.coordinate_rules import RULES
from llmc.ir.coordinates import INFINITE, Coordinates, Formula
from llmc.ir.mask import LENGTH
from llmc.ir.model import Model

LENGTHS = (1, 2, 5, 17)
FAR = torch.iinfo(torch.int64).max
BAND = torch.ones(24, 24).tril().bool()
WINDOW = BAND & torch.ones(24, 24).triu(-3).bool()
ODD = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


def at(x: Tensor) -> Tensor:
    """Positions [S] of tokens [1, S]."""
    return torch.arange(x.shape[1])


def ones(x: Tensor) -> Tensor:
    return torch.ones(1, x.shape[1], dtype=torch.int64)


def square(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], x.shape[1])


FORMULAS: dict[str, Callable[[Tensor], Any]] = {
    "arange": lambda x: at(x),
    "arange with start and step": lambda x: torch.arange(3, 3 + 2 * x.shape[1], 2),
    "arange to a size plus one": lambda x: torch.arange(1, x.shape[1] + 1),
    "arange as floats": lambda x: torch.arange(x.shape[1], dtype=torch.float32),
    "full": lambda x: torch.full((1, x.shape[1]), 7),
    "zeros and ones": lambda x: torch.zeros(x.shape[1]) + torch.ones(x.shape[1]),
    "likes of tokens": lambda x: torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 3),
    "news of tokens": lambda x: x.new_ones(x.shape[1]) + x.new_zeros(x.shape[1]) + x.new_full((x.shape[1],), 4),
    "the length": lambda x: at(x) - x.shape[1],
    "sums and differences": lambda x: 3 + at(x) - 2 - (10 - at(x)),
    "sums with a factor": lambda x: torch.add(at(x), at(x), alpha=3) - torch.sub(at(x), 2, alpha=5),
    "products": lambda x: at(x)[:, None] * at(x) * 3,
    "quotients": lambda x: at(x) / 4,
    "floor quotients": lambda x: (at(x) - 3) // 2 + torch.div(at(x), 3, rounding_mode="floor"),
    "remainders": lambda x: (at(x) - 3) % 4 + torch.remainder(at(x), 3),
    "negation and absolute": lambda x: -(at(x) - 3).abs(),
    "floor": lambda x: torch.floor(at(x) / 4),
    "minimum and maximum": lambda x: torch.minimum(at(x), at(x)[:, None]) - torch.maximum(at(x), at(x) * 2 - 3),
    "clamps": lambda x: at(x).clamp(2, 7) + at(x).clamp(max=4) + at(x).clamp(min=3) + at(x).clamp_min(1),
    "cumulated ones": lambda x: ones(x).cumsum(-1) - 1,
    "cumulated ones as opt counts": lambda x: (ones(x).cumsum(1) * ones(x)).long() + 1,
    "cumulated shared predicate": lambda x: (ones(x) > 0).cumsum(1),
    "differences": lambda x: (at(x) * 3 + 1)[None].diff(dim=-1),
    "differences after a prefix": lambda x: at(x)[None].diff(dim=-1, prepend=at(x)[None, :1] - 1),
    "lower triangle": lambda x: square(x).tril(),
    "lower triangle, moved": lambda x: square(x).tril(diagonal=2) + square(x).tril(-1),
    "upper triangle": lambda x: square(x).triu() + square(x).triu(1) * 2 + square(x).triu(diagonal=-3),
    "upper triangle of a fill": lambda x: torch.full((x.shape[1], x.shape[1]), -5.0).triu(1),
    "comparisons": lambda x: [
        compare(at(x)[:, None], at(x)) for compare in (torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne)
    ],
    "comparisons with numbers": lambda x: [at(x) < 3, at(x) <= 3, at(x) > 3, at(x) >= 3, at(x) == 3, at(x) != 3],
    "logic": lambda x: [
        (at(x)[:, None] < at(x)) & (at(x) < 4),
        (at(x)[:, None] < at(x)) | (at(x) < 4),
        (at(x)[:, None] < at(x)) ^ (at(x) < 4),
        ~(at(x)[:, None] < at(x)),
        torch.logical_and(at(x), at(x)[:, None] < 3),
        torch.logical_or(at(x), at(x)[:, None] < 3),
        torch.logical_not(at(x)),
    ],
    "bool conversions": lambda x: [
        at(x).bool(),
        (at(x) < 3).long() * 5,
        (at(x) < 3).float(),
        square(x).tril().bool(),
        (1.0 - square(x).tril()).bool(),
        (at(x) < 3) + at(x),
    ],
    "where": lambda x: torch.where(at(x)[:, None] >= at(x), at(x), -1),
    "where of numbers": lambda x: torch.where(at(x) > 2, 1.0, 0.5),
    "where of predicates": lambda x: torch.where(at(x) > 2, at(x) < 9, at(x) > 0),
    "where on numbers as a predicate": lambda x: torch.where(at(x).bool(), 2, 3),
    "nested where": lambda x: torch.where(at(x) < 9, torch.where(at(x) < 4, 1, 2), 3).bool(),
    "masked fill": lambda x: square(x).masked_fill(at(x)[:, None] < at(x), 0.25),
    "masked fill by a tensor": lambda x: square(x).masked_fill(at(x)[:, None] < at(x), torch.tensor(0.25)),
    "unsqueeze and squeeze": lambda x: at(x)[None, :, None].squeeze(-1).squeeze(0)[None, None],
    "unsqueeze from behind": lambda x: at(x).unsqueeze(-1).unsqueeze(-2),
    "view that adds ones": lambda x: at(x).view(1, 1, -1, 1).reshape(-1, 1),
    "view that splits": lambda x: (torch.arange(12).view(3, 4) + at(x)[:, None, None]).reshape(-1, 6, 2),
    "view that joins": lambda x: (torch.arange(3)[:, None] + at(x)[:, None, None] * 10).reshape(x.shape[1], 3),
    "permute and transpose": lambda x: (
        (at(x)[:, None, None] * 100 + torch.arange(3)[:, None] * 10 + torch.arange(4)).permute(2, 0, 1).transpose(0, -1)
    ),
    "transposed matrix": lambda x: (at(x)[:, None] * 100 + torch.arange(3)).t(),
    "slices": lambda x: (torch.arange(40) * 3)[2 : x.shape[1] + 2],
    "slices from behind": lambda x: torch.arange(x.shape[1] + 4)[-3:],
    "slices with a step": lambda x: torch.arange(2 * x.shape[1])[1::2],
    "slices of a dimension from behind": lambda x: (at(x)[:, None] + torch.arange(9))[..., -4:-1],
    "select": lambda x: (at(x)[:, None] * 10 + torch.arange(4))[:, 2] + at(x)[-1],
    "cat": lambda x: torch.cat([at(x), at(x) * 10, torch.full((3,), 7)]),
    "cat along the last dimension": lambda x: torch.cat([at(x)[:, None], at(x)[:, None] * 10 + torch.arange(2)], -1),
    "index": lambda x: (torch.arange(40) * 3)[at(x) + 2],
    "index of two dimensions": lambda x: (torch.arange(20)[:, None] * 100 + torch.arange(20))[at(x)[:, None], at(x)],
    "index of the last dimension": lambda x: (at(x)[:, None] * 100 + torch.arange(8))[:, ODD.clamp(max=0)],
    "index of dimensions apart": lambda x: (
        (torch.arange(20)[:, None, None] * 100 + torch.arange(3)[:, None] * 30 + torch.arange(20))[at(x), :, at(x)]
    ),
    "expand": lambda x: at(x)[:, None].expand(-1, 3) + at(x)[None, :, None].expand(2, x.shape[1], 3),
    "repeat": lambda x: torch.arange(3)[:, None].repeat(2, x.shape[1]) + at(x),
    "copies": lambda x: at(x).clone().detach().contiguous().to(torch.float32).int(),
    "a window and its chunks": lambda x: (
        (at(x)[:, None] - at(x) < 4) & (at(x)[None] // 3 == at(x)[:, None] // 3)
    ),
    "alibi": lambda x: torch.tensor([0.5, 0.25])[:, None, None] * (at(x)[None] - at(x)[:, None]),
    "a window of the gpt_oss kind": lambda x: torch.where(
        (at(x) > at(x)[:, None] - 4) & (at(x) <= at(x)[:, None]), 1.0, 0.0
    ),
}  # fmt: skip


class Buffered(nn.Module):
    """Returns a function of the tokens and a buffer."""

    def __init__(self, table: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.table, x)


def formulas(model: Model) -> tuple[Coordinates, list[Formula | None]]:
    coordinates = Coordinates(model, RULES)
    return coordinates, [coordinates.of(node) for node in model.graph.output_node().args[0]]


def model_of(function: Callable[[Tensor], Any] | nn.Module) -> Model:
    return trace(function, torch.arange(11)[None], dynamic={0: [1]})


def places(size: int) -> list[int]:
    """All places of a small dimension; of a larger one the first, the last, and some between."""
    return list(range(size)) if size <= 8 else [0, 1, 2, 3, 4, 9, size - 2, size - 1]


def check(coordinates: Coordinates, formula: Formula | None, length: int, expected: Tensor) -> None:
    """Evaluate a formula on a grid of indices and compare with the tensor it describes."""
    assert formula is not None
    assert [int(sympy.sympify(size).subs(LENGTH, length)) for size in formula.shape] == list(expected.shape)
    symbols = tuple(sympy.Symbol(f"i{dim}", integer=True, nonnegative=True) for dim in range(expected.dim()))
    general = formula.at(symbols).subs(LENGTH, length)
    tables = {name: coordinates.model.weights[node.name].evaluate() for name, node in coordinates.tables.items()}
    for index in itertools.product(*map(places, expected.shape)):
        exact = general.subs(dict(zip(symbols, index, strict=True)))
        for call in exact.atoms(sympy.core.function.AppliedUndef):
            exact = exact.subs(call, float(tables[call.func.__name__][tuple(int(arg) for arg in call.args)]))
        exact = exact.subs(INFINITE, -sympy.oo)
        found = bool(exact) if isinstance(exact, sympy.logic.boolalg.BooleanAtom) else float(exact)
        assert found == pytest.approx(expected[index].item(), rel=1e-6), (index, exact)
        assert isinstance(found, bool) == (expected.dtype == torch.bool)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_gives_what_torch_computes(name: str) -> None:
    function = FORMULAS[name]
    coordinates, found = formulas(model_of(function))
    for length in LENGTHS:
        expected = function(torch.arange(length)[None])
        for formula, tensor in zip(found, expected if isinstance(expected, list) else [expected], strict=True):
            check(coordinates, formula, length, tensor)


def in_corner(table: Tensor, x: Tensor) -> Tensor:
    return table[..., : x.shape[1], : x.shape[1]]


BUFFERS: dict[str, tuple[Tensor, Callable[[Tensor, Tensor], Tensor], str]] = {
    "causal bool": (BAND, in_corner, "i0 - i1 >= 0"),
    "causal uint8": (BAND.to(torch.uint8)[None, None], lambda t, x: in_corner(t, x).bool(), "i2 - i3 >= 0"),
    "window": (WINDOW, in_corner, "(i0 - i1 >= 0) & (i0 - i1 < 4)"),
    "not causal": (~BAND, in_corner, "i0 - i1 < 0"),
    "everything": (torch.ones(24, 24, dtype=torch.bool), in_corner, "True"),
    "alibi line": (
        torch.tensor([0.5, 0.25])[:, None] * torch.arange(24.0) - 1,
        lambda t, x: t[:, : x.shape[1]],
        "i1*w_table_step(i0) + w_table_start(i0)",
    ),
    "alibi line of a slope that is rounded": (
        2.0 ** -torch.tensor([0.25, 0.5, 7.75])[:, None] * torch.arange(-2047.0, 1),
        lambda t, x: t[:, : x.shape[1]],
        "i1*w_table_step(i0) + w_table_start(i0)",
    ),
    "one line": (torch.arange(24.0) * 0.5, lambda t, x: t[: x.shape[1]], "0.5*i0"),
    "a table that is no line": (torch.arange(24.0) ** 2, lambda t, x: t[: x.shape[1]], "w_table(i0)"),
    "a mask that is no band": (torch.eye(24).flip(0).bool(), in_corner, "w_table(i0, i1)"),
    "a row of integers": (torch.arange(24) // 3, lambda t, x: t[: x.shape[1]], "w_table(i0)"),
    "one number": (torch.tensor(0.125), lambda t, x: at(x) * t, "0.125*i0"),
    "one predicate": (torch.tensor(True), lambda t, x: t & (at(x) < 3), "i0 < 3"),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_a_buffer_is_a_band_a_line_a_number_or_a_table(name: str) -> None:
    table, function, text = BUFFERS[name]
    coordinates, (formula,) = formulas(model_of(Buffered(table, function)))
    assert formula is not None
    symbols = tuple(sympy.Symbol(f"i{dim}", integer=True, nonnegative=True) for dim in range(len(formula.shape)))
    plain = formula.at(symbols)
    shown = {"w_table(i0, i1)": "Ne(w_table(i0, i1), 0)"}.get(text, text)
    assert str(plain) == shown
    for length in LENGTHS:
        check(coordinates, formula, length, function(table, torch.arange(length)[None]))


@pytest.mark.parametrize("low", [float("-inf"), torch.finfo(torch.float32).min, -1e9, -65504.0, -1e4])
def test_a_number_low_enough_to_hide_a_score_is_hidden(low: float) -> None:
    _, (formula,) = formulas(model_of(lambda x: square(x).masked_fill(at(x)[:, None] < at(x), low)))
    assert formula is not None
    assert formula.at((sympy.S.Zero, sympy.S.One)) == INFINITE
    assert formula.at((sympy.S.One, sympy.S.One)) == 1
    _, (kept,) = formulas(model_of(lambda x: square(x) * -9999.0))
    assert kept is not None and kept.at((sympy.S.One, sympy.S.One)) == -9999


UNKNOWN: dict[str, Callable[[Tensor], Any]] = {
    "token values": lambda x: x + at(x),
    "what follows from token values": lambda x: torch.where(x > 3, at(x), 0)[0] + 1,
    "ops without a rule": lambda x: torch.sin(at(x).float()),
    "cumulated positions": lambda x: at(x).cumsum(0),
    "second differences": lambda x: at(x).diff(n=2),
    "differences before a suffix": lambda x: at(x).diff(append=at(x)[:1]),
    "differences after two": lambda x: at(x).diff(prepend=at(x)[:1].repeat(2)),
    "truncated quotients": lambda x: torch.div(at(x) - 3, 2, rounding_mode="trunc"),
    "bits of integers": lambda x: at(x) & 3,
    "inverted integers": lambda x: torch.bitwise_not(at(x)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_no_index_arithmetic_has_no_formula(name: str) -> None:
    _, (formula,) = formulas(model_of(UNKNOWN[name]))
    assert formula is None
