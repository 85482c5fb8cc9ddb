"""Which keys a mask lets a query see: no key that is seen is left out, and what is said to be seen wholly is."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.codegen.formula_terms import extremes, magnitude
from llmc.codegen.key_ranges import KeyRanges, key_ranges
from llmc.ir.mask import evaluate

HEADS, LENGTH = 3, 40
Q = torch.arange(LENGTH)[:, None, None]
K = torch.arange(LENGTH)[None, :, None]
H = torch.arange(HEADS)[None, None, :]
TABLE = torch.arange(LENGTH) % 3 == 0


@pytest.mark.parametrize(
    ("mask", "ranges", "exact"),
    [
        ("True", ["0 to the last"], True),
        ("k <= q", ["0 to q"], True),
        ("(k <= q) & (q - k < 4096)", ["q - 4095 to q"], True),
        ("(k <= q) & (q - k < 40) & (q - k < 30)", ["q - 29 to q"], True),
        ("(k <= q) & (k // 8192 == q // 8192)", ["q // 8192 * 8192 to q"], True),
        ("(k <= q) & (q - k <= q % 8192)", ["q // 8192 * 8192 to q"], True),
        ("(k <= q) & (q // 64 - k // 64 < 8)", ["(q // 64 - 7) * 64 to q"], True),
        ("(k <= q) | (k < 40)", ["0 to maximum(q, 39)"], True),
        ("((k <= q) | (k < 40)) & (q - k < 60)", ["q - 59 to maximum(q, 39)"], True),
        ("(k <= q) & ((k < 4) | (q - k < 1024))", ["0 to minimum(q, 3)", "q - 1023 to q"], True),
        ("abs(q - k) < 20", ["q - 19 to q + 19"], True),
        ("(k < 9) | (abs(q - k) < 20)", ["0 to 8", "q - 19 to q + 19"], True),
        ("(k <= q) & t0[k]", ["0 to q"], False),
        ("k <= q - 20 * h", ["0 to q"], False),
        ("(k <= q) & ((q - k) % 4 == 0)", ["0 to q"], False),
        (
            "(k <= q) & ((k < 4) | (k // 8 == 3) | (q - k < 9))",
            ["0 to minimum(q, 3)", "minimum(24, q - 8) to q"],
            False,
        ),
        ("False", ["0 to -1"], True),
    ],
)
def test_masks_of_models(mask: str, ranges: list[str], exact: bool) -> None:
    found = key_ranges(mask, HEADS)
    assert [str(each) for each in found.ranges] == ranges
    assert found.exact is exact and bool(found.unknown) is not exact


def _number(text: str, q: torch.Tensor = Q) -> torch.Tensor:
    return evaluate(text, q, K, H, [], torch.float32)


def _within(found: KeyRanges) -> torch.Tensor:
    """[query, key, 1]: whether a key is in a range."""
    within = torch.zeros(LENGTH, LENGTH, 1, dtype=torch.bool)
    for each in found.ranges:
        within |= (_number(each.low or "0") <= K) & (_number(each.high or str(LENGTH)) >= K)
    return within


small = st.integers(0, 12)
positive = st.integers(1, 9)
of_query = st.one_of(
    st.just("q"),
    st.builds("q {} {}".format, st.sampled_from("+-"), small),
    st.builds("{} - q".format, small),
    st.builds("q // {} * {}".format, positive, positive),
    st.builds("q % {}".format, positive),
    st.builds("minimum(q, {})".format, small),
    st.builds("abs(q - {})".format, small),
    st.builds("where(q < {}, {}, q)".format, small, small),
    st.builds("q - {} * h".format, small),
    small.map(str),
)
of_key = st.one_of(
    st.just("k"),
    st.just("q - k"),
    st.just("k - q"),
    st.builds("k // {}".format, positive),
    st.builds("(q - k) // {}".format, positive),
    st.builds("k * {} - {}".format, positive, small),
    st.builds("{} - {} * k".format, small, positive),
    st.builds("-k + {}".format, small),
    st.builds("q // {} - k // {}".format, positive, positive),
    st.builds("abs(k - {})".format, small),
    st.builds("abs(q - k)".format),
    st.builds("maximum(k, {})".format, small),
    st.builds("minimum(k - {}, {})".format, small, small),
    st.builds("k % {}".format, positive),
    st.builds("k - h".format),
)
comparison = st.builds(
    "({} {} {})".format, st.one_of(of_key, of_query), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.one_of(of_query, of_key),
)  # fmt: skip
atom = st.one_of(comparison, comparison, comparison, st.sampled_from(["True", "False", f"t0[k % {LENGTH}]"]))
masks = st.recursive(
    atom,
    lambda inner: st.one_of(
        st.builds("({} & {})".format, inner, inner),
        st.builds("({} | {})".format, inner, inner),
        st.builds("~{}".format, inner),
        st.builds("where({}, {}, {})".format, inner, inner, inner),
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(masks)
def test_no_visible_key_is_left_out(mask: str) -> None:
    found = key_ranges(mask, HEADS)
    seen = evaluate(mask, Q, K, H, [TABLE], torch.float32).expand(LENGTH, LENGTH, HEADS)
    within = _within(found).expand_as(seen)
    assert not bool((seen & ~within).any())
    if found.exact:
        assert torch.equal(seen, within)


@settings(max_examples=200, deadline=None)
@given(of_query, st.integers(0, LENGTH - 1), st.integers(0, 9))
def test_extremes_over_a_tile_of_queries(text: str, low: int, more: int) -> None:
    ends = extremes(text, {"q": ("q", f"q + {more}"), "h": ("0", str(HEADS - 1))})
    least, greatest = (int(_number(end, torch.tensor(low)).expand(1, 1, 1)) for end in ends)
    values = evaluate(text, torch.arange(low, low + more + 1)[:, None, None], K, H, [], torch.float32)
    assert least <= int(values.min()) and int(values.max()) <= greatest
    bound = magnitude(text, {"q": low + more, "h": HEADS - 1})
    assert int(values.abs().max()) <= bound


@pytest.mark.parametrize("text", ["q", "q // 8 * 8", "maximum(q, 39)", "q - 7", "where(q < 9, 3, 1)", "abs(q - 9)"])
def test_extremes_of_formulas_of_models_are_reached(text: str) -> None:
    for low, high in pairwise(range(0, LENGTH, 5)):
        values = _number(text, torch.arange(low, high + 1))
        ends = extremes(text, {"q": (str(low), str(high))})
        found = [int(_number(end)) for end in ends]
        assert found == [int(values.min()), int(values.max())]
