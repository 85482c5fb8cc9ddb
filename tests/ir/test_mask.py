"""Mask formulas: what they mean, how they are spelled, and what is refused."""

import pytest
import sympy
import torch
from torch import Tensor

from llmc.errors import InvalidGraph
from llmc.ir.mask import HEAD, KEY, LENGTH, QUERY, canonical, evaluate, text_of, validate

SIZE, HEADS = 17, 3
Q, K = torch.arange(SIZE)[None, :, None], torch.arange(SIZE)[None, None, :]
H = torch.arange(HEADS)[:, None, None]
TABLE = torch.tensor([0.5, -2.0, 8.0])
GRID = torch.arange(SIZE * SIZE).reshape(SIZE, SIZE)


def value(text: str, *tables: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return evaluate(text, Q, K, H, tables, dtype)


FORMULAS = {
    "k <= q": K <= Q,
    "(k <= q) & (q - k < 8)": (K <= Q) & (Q - K < 8),
    "(k < 4) | (q == k) ^ (h != 1)": (K < 4) | ((Q == K) ^ (H != 1)),
    "~(k > q) & ~(k >= 12)": (K <= Q) & (K < 12),
    "(q - k) // 3 < 2": torch.div(Q - K, 3, rounding_mode="floor") < 2,
    "(k - q) % 5 == 2": torch.remainder(K - Q, 5) == 2,
    "q // 4 == k // 4": (Q // 4) == (K // 4),
    "minimum(q, 9) >= maximum(k, 3)": Q.clamp(max=9) >= K.clamp(min=3),
    "abs(q - k) < 3": (Q - K).abs() < 3,
    "-k + 2 * q ** 2": 2 * Q**2 - K,
    "where(k <= q, q - k, -1)": torch.where(K <= Q, Q - K, -1),
    "q / 3 + 0.25": Q.double() / 3 + 0.25,
    "floor(q / 4)": (Q / 4).floor(),
    "t0[h] * (k - q)": TABLE[:, None, None].double() * (K - Q),
    "t1[q, k] + h": GRID[None] + H,
    "log(k + 1) + exp(-q) + sqrt(q)": torch.log(K.double() + 1) + torch.exp(-Q.double()) + torch.sqrt(Q.double()),
}


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_means_what_torch_means_by_it(text: str) -> None:
    validate(text)
    shape = HEADS, SIZE, SIZE
    found, expected = value(text, TABLE, GRID).expand(shape), FORMULAS[text].expand(shape)
    assert found.is_floating_point() == expected.is_floating_point()
    assert (found.dtype == torch.bool) == (expected.dtype == torch.bool)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-12, atol=1e-12)


def test_numbers_of_tables_and_formulas_are_computed_in_the_dtype_asked_for() -> None:
    for text in ("t0[h]", "0.1 + t0[h]", "q / 3", "log(k + 1)"):
        assert value(text, TABLE).dtype == torch.float64
        assert value(text, TABLE, dtype=torch.float32).dtype == torch.float32
    assert value("t0[q, k]", GRID).dtype == torch.int64


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "q.__class__",
        "(lambda: q)()",
        "[q for q in k]",
        "open(q)",
        "where(q, k)",
        "abs(q, k)",
        "minimum(q)",
        "where(k < q, 1, x=2)",
        "where",
        "t0",
        "t[q]",
        "tq[q]",
        "t0[q:k]",
        "t0x[q]",
        "t99999999999[q]",
        "t٣[q]",
        "q < k < h",
        "q if k else h",
        "q and k",
        "k := q",
        "not q",
        "+q",
        "'k <= q'",
        "b'1'",
        "None",
        "...",
        "1j",
        "9223372036854775808",
        "q << 3",
        "q @ k",
        "S",
        "",
        "q q",
        "q\nimport os",
        "k <= q # \0",
        "(" * 80 + "q" + ")" * 80 + "+",
        "-" * 65 + "q",
        "+".join(["q"] * 3000),
        "k & q",
        "~k",
        "(k < q) + 1",
        "-(k < q)",
        "(k < q) < 3",
        "where(k, 1, 2)",
        "where(k < q, 1, k < q)",
        "t0[k < q]",
    ],
)
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(InvalidGraph, match="mask formula"):
        validate(text)
    with pytest.raises(InvalidGraph, match="mask formula"):
        value(text, TABLE)


def test_a_number_is_no_mask_and_a_predicate_is_no_bias() -> None:
    validate("k <= q", "predicate")
    validate("k - q", "number")
    validate("where(k <= q, t0[h], t1[h])", "predicate")
    validate("where(k <= q, t0[h], 1)", "number")
    with pytest.raises(InvalidGraph, match="mask formula 'k - q' is a number; expected a predicate"):
        validate("k - q", "predicate")
    with pytest.raises(InvalidGraph, match="'where\\(q < 3, True, k <= q\\)' is a predicate; expected a number"):
        validate("where(q < 3, True, k <= q)", "number")


def test_a_table_that_is_not_given_is_refused() -> None:
    with pytest.raises(InvalidGraph, match=r"holds 't1\[h\]'; given are 1 tables"):
        value("t0[h] + t1[h]", TABLE)


CANONICAL = {
    "q >= k": sympy.Ge(QUERY, KEY),
    "k < q + 1": sympy.Lt(KEY, QUERY + 1),
    "-k > -q - 1": sympy.Gt(-KEY, -QUERY - 1),
    "q - k >= 0": sympy.Ge(QUERY - KEY, 0),
}


@pytest.mark.parametrize("spelling", CANONICAL)
def test_causal_has_one_spelling(spelling: str) -> None:
    assert text_of(canonical(CANONICAL[spelling])) == "k <= q"


@pytest.mark.parametrize(
    "window",
    [
        sympy.Lt(QUERY - KEY, 8),
        sympy.Gt(KEY, QUERY - 8),
        sympy.Ge(KEY, QUERY - 7),
        sympy.Le(QUERY - KEY, 7),
        sympy.Not(sympy.Ge(QUERY - KEY, 8)),
        sympy.Le(QUERY, KEY + 7),
    ],
    ids=str,
)
def test_a_causal_window_has_one_spelling(window: sympy.Basic) -> None:
    assert text_of(canonical(sympy.And(window, sympy.Ge(QUERY, KEY)))) == "(k <= q) & (q - k < 8)"


def test_what_is_no_distance_keeps_its_spelling() -> None:
    for relation in (sympy.Lt(QUERY, 4), sympy.Lt(QUERY + KEY, 4), sympy.Ge(2 * QUERY - KEY, 0), sympy.Eq(QUERY, KEY)):
        assert canonical(relation) == relation
    slope = sympy.Function("t0")(HEAD)
    assert canonical(sympy.Lt(QUERY - KEY, slope)) == sympy.Lt(QUERY - KEY, slope)
    assert text_of(canonical(sympy.Lt(KEY - 3, QUERY))) == "k <= q + 2"
    assert text_of(canonical(sympy.Lt(KEY + 3, QUERY))) == "k <= q - 4"
    assert canonical(sympy.true) == sympy.true


PRINTED = [
    (sympy.true, "True"),
    (sympy.false, "False"),
    (sympy.Not(sympy.Eq(QUERY, KEY)), "q != k"),
    (sympy.And(QUERY < 3, KEY < 10, evaluate=False), "(q < 3) & (k < 10)"),
    (sympy.Or(QUERY < 3, sympy.And(KEY < 3, HEAD < 3)), "(q < 3) | ((h < 3) & (k < 3))"),
    (QUERY - KEY, "q - k"),
    (-KEY, None),
    (sympy.Rational(3, 8) * KEY, "(3 / 8) * k"),
    (sympy.Rational(-3, 8) * KEY - 2, None),
    (sympy.Float(0.1) * (KEY - QUERY), None),
    (sympy.floor(QUERY / 4), "q // 4"),
    (sympy.floor((QUERY - KEY) / 4) * 3, None),
    (sympy.Mod(QUERY - KEY, 7), "(q - k) % 7"),
    (sympy.Min(QUERY, 5, KEY), None),
    (sympy.Max(QUERY - 2, 0), None),
    (sympy.Abs(KEY - QUERY), None),
    ((KEY + 1) ** 2, "(k + 1) ** 2"),
    ((KEY - QUERY) * -(HEAD + 1), None),
    (sympy.Piecewise((QUERY, KEY < 3), (KEY, QUERY < 3), (HEAD, True)), "where(k < 3, q, where(q < 3, k, h))"),
    (sympy.Function("t0")(HEAD) * (KEY - QUERY), None),
    (sympy.log(KEY + 1), "log(k + 1)"),
]


@pytest.mark.parametrize(("formula", "text"), PRINTED, ids=str)
def test_a_formula_prints_as_text_of_the_same_value(formula: sympy.Basic, text: str | None) -> None:
    printed = text_of(formula)
    assert text is None or printed == text
    found = value(printed, TABLE)
    table = sympy.Function("t0")
    for h, q, k in [(0, 0, 0), (1, 3, 2), (2, 5, 9), (0, 16, 16), (2, 16, 0)]:
        exact = formula.subs({QUERY: q, KEY: k, HEAD: h}) if formula.free_symbols else formula
        exact = exact.subs(table(h), float(TABLE[h]))
        expected = float(exact) if not isinstance(exact, sympy.logic.boolalg.BooleanAtom) else bool(exact)
        place = tuple(min(i, size - 1) for i, size in zip((h, q, k), found.shape, strict=True)) if found.dim() else ()
        assert found[place].item() == pytest.approx(expected, rel=1e-12, abs=1e-12), (h, q, k)


@pytest.mark.parametrize("formula", [LENGTH - KEY, sympy.sin(KEY), sympy.Symbol("q"), sympy.oo, sympy.I * KEY], ids=str)
def test_what_the_grammar_lacks_cannot_be_printed(formula: sympy.Basic) -> None:
    with pytest.raises(InvalidGraph, match="mask formula holds"):
        text_of(formula)
