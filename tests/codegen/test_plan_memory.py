"""Memory plans: what is in use at the same time never overlaps, and little is wasted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.codegen.plan_memory import Buffer, plan


@st.composite
def buffer_lists(draw: st.DrawFn) -> list[Buffer]:
    count = draw(st.integers(0, 25))
    buffers: list[Buffer] = []
    for number in range(count):
        first = draw(st.integers(0, 20))
        size = draw(st.sampled_from([0, 1, 4, 64, 100, 576 * 4, 1536 * 4]))
        over = None
        if buffers and draw(st.booleans()):
            below = draw(st.sampled_from(buffers))
            over, first, size = below.key, below.last, below.size
        buffers.append(
            Buffer(
                f"v{number}",
                first,
                first + draw(st.integers(0, 8)),
                size,
                draw(st.sampled_from(["token", "row", "fixed"])),
                over=over,
            )
        )
    return buffers


@settings(max_examples=200, deadline=None)
@given(buffer_lists(), st.integers(1, 70))
def test_what_is_in_use_at_the_same_time_never_overlaps(buffers: list[Buffer], tokens: int) -> None:
    found = plan(buffers)
    spans = {}
    for buffer in buffers:
        start = found.address(buffer.key, tokens)
        assert start % 64 == 0
        end = start + buffer.size * (1 if buffer.unit == "fixed" else tokens)
        assert 0 <= start <= end <= found.bytes(tokens)
        spans[buffer.key] = (start, end)
    for one in buffers:
        for other in buffers:
            if one.key == other.key or one.last < other.first or other.last < one.first:
                continue
            if other.over == one.key and one.last == other.first and spans[one.key] == spans[other.key]:
                continue
            if one.over == other.key and other.last == one.first and spans[one.key] == spans[other.key]:
                continue
            (start, end), (begin, stop) = spans[one.key], spans[other.key]
            assert end <= begin or stop <= start or start == end or begin == stop
    assert found.lower_bound <= found.per_token <= found.no_reuse


def decoder(layers: int) -> list[Buffer]:
    """The buffers of a Llama of width 576: five regions a layer."""
    buffers = [Buffer("cos", 0, 5 * layers, 256), Buffer("sin", 0, 5 * layers, 256), Buffer("x0", 0, 3, 2304)]
    for layer in range(layers):
        at = 1 + 5 * layer
        buffers += [
            Buffer(f"q{layer}", at, at + 1, 2304),
            Buffer(f"a{layer}", at + 1, at + 2, 2304),
            Buffer(f"h{layer}", at + 2, at + 4, 2304, over=f"x{layer}"),
            Buffer(f"m{layer}", at + 3, at + 4, 6144),
            Buffer(f"x{layer + 1}", at + 4, at + 7, 2304, over=f"h{layer}"),
        ]
    return buffers


def test_a_decoder_needs_what_is_live_at_once() -> None:
    found = plan(decoder(30))
    assert found.per_token == found.lower_bound == 256 + 256 + 2304 + 6144
    assert found.no_reuse > 20 * found.per_token
    assert found.offsets["x0"] == found.offsets["h7"] == found.offsets["x30"]


def test_plans_are_the_same_every_time() -> None:
    assert plan(decoder(4)) == plan(decoder(4))


def test_a_place_is_kept_across_a_gap() -> None:
    found = plan([Buffer("in", 0, 1, 64, place="x"), Buffer("between", 2, 2, 64), Buffer("out", 3, 4, 64, place="x")])
    assert found.offsets["in"] == found.offsets["out"] != found.offsets["between"]


def test_what_is_written_over_a_place_does_not_meet_its_next_tenant() -> None:
    buffers = [
        Buffer("in", 0, 2, 64, place="x"),
        Buffer("long", 2, 8, 64, over="in"),
        Buffer("out", 5, 6, 64, place="x"),
    ]
    found = plan(buffers)
    assert found.offsets["long"] != found.offsets["out"]


def test_fixed_buffers_come_before_those_that_grow() -> None:
    found = plan([Buffer("table", 0, 3, 100, "fixed"), Buffer("x", 0, 1, 8)])
    assert (found.address("table", 5), found.address("x", 5), found.bytes(5)) == (0, 128, 128 + 64 * 5)
    assert str(found) == "64 bytes a token (64 without reuse, 64 live at once) and 128 bytes"


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ([Buffer("x", 2, 1, 8)], "8 bytes from 2 to 1"),
        ([Buffer("x", 1, 1, -8)], "-8 bytes"),
        ([Buffer("x", 1, 1, 8)] * 2, "given twice"),
        ([Buffer("x", 1, 3, 8, place=0), Buffer("y", 3, 4, 8, place=0)], "in use at the same time"),
        ([Buffer("x", 1, 3, 8, place=0), Buffer("y", 4, 4, 8, "fixed", place=0)], "different units"),
    ],
)
def test_impossible_requests_are_refused(buffers: list[Buffer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(buffers)
