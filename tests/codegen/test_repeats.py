"""Loops in programs: found where layers repeat, refused where they only seem to, and exact when run."""

import time
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.codegen.lifetimes import Rolled, live_buffers
from llmc.codegen.plan_memory import plan
from llmc.codegen.repeats import Carried, Item, Loop, find_loop, find_loops


def layer(number: int, kind: str = "full", carry: str = "x") -> list[Item]:
    """The five regions of a Llama layer: it reads {carry}{number}, writes {carry}{number + 1}."""
    n, x, after = number, f"{carry}{number}", f"{carry}{number + 1}"
    caches = (f"k{n}", f"v{n}")
    return [
        Item("qkv", (x, f"cos_{kind}", f"sin_{kind}"), (f"q{n}",), (f"qkv{n}",), caches),
        Item(("attention", kind), (f"q{n}",), (f"a{n}",), (), caches),
        Item("o", (f"a{n}", x), (f"h{n}",), (f"o{n}",), over=((f"h{n}", x),)),
        Item("gate_up", (f"h{n}",), (f"m{n}",), (f"gu{n}",)),
        Item("down", (f"m{n}", f"h{n}"), (after,), (f"d{n}",), over=((after, f"h{n}"),)),
    ]


def model(kinds: list[str]) -> list[Item]:
    tables = [Item("tables", ("positions",), (f"cos_{kind}", f"sin_{kind}")) for kind in sorted(set(kinds))]
    layers = [item for number, kind in enumerate(kinds) for item in layer(number, kind)]
    head = Item("head", (f"x{len(kinds)}", "rows"), ("logits",), ("embed",))
    return [*tables, Item("embed", ("tokens",), ("x0",), ("embed",)), *layers, head]


def check(items: list[Item], loops: tuple[Loop, ...], results: tuple[str, ...]) -> None:
    """Run the items in a row and the loops in planned memory: the same results."""
    straight: dict[object, object] = {}
    for item in items:
        _compute(item, straight, item.weights, item.caches)
    rolled = Rolled(items, loops)
    buffers = live_buffers(items, loops, {v: (64, "token") for item in items for v in item.outputs}, results)
    places = plan(buffers).offsets
    memory: dict[int, object] = {}
    number = 0
    for loop in [*loops, None]:
        while number < (len(items) if loop is None else loop.start):
            _run(items[number], items[number], memory, places, rolled)
            number += 1
        for iteration in range(0 if loop is None else loop.count):
            weights, caches = list(loop.weights[iteration]), list(loop.caches[iteration])
            for place in loop.body():
                body = items[place]
                named = replace(
                    body,
                    weights=tuple(weights[: len(body.weights)]),
                    caches=tuple(caches[: len(body.caches)]),
                )
                del weights[: len(body.weights)], caches[: len(body.caches)]
                _run(body, named, memory, places, rolled)
                number += 1
    for result in results:
        assert memory[places[rolled.twin(result)]] == straight[result]


def _compute(item: Item, values: dict[object, object], weights: object, caches: object) -> None:
    made = hash((item.key, *(values.get(v, v) for v in item.inputs), weights, caches))
    for place, value in enumerate(item.outputs):
        before = values.get(value) if value in values else None
        values[value] = hash((made, place, before))


def _run(body: Item, named: Item, memory: dict[int, object], places: dict[object, int], rolled: Rolled) -> None:
    over = {(rolled.twin(output), rolled.twin(source)) for output, source in body.over}
    where = {v: places[rolled.twin(v)] for v in body.inputs + body.outputs if rolled.twin(v) in places}
    for output in body.outputs:
        for source in body.inputs:
            if output != source and source in where and where[output] == where[source]:
                assert (rolled.twin(output), rolled.twin(source)) in over
    values = {v: memory[where[v]] for v in body.inputs if v in where}
    for output in body.outputs:
        if output in memory and output in values:
            values[output] = memory[where[output]]
    _compute(named, values, named.weights, named.caches)
    for output in body.outputs:
        memory[where[output]] = values[output]


def test_the_layers_of_a_decoder_are_one_loop() -> None:
    items = model(["full"] * 30)
    (loop,) = find_loops(items, ["logits"])
    assert (loop.start, loop.period, loop.count, loop.stop) == (2, 5, 30, len(items) - 1)
    assert loop.weights[7] == ("qkv7", "o7", "gu7", "d7")
    assert loop.caches[29] == ("k29", "v29", "k29", "v29")
    assert loop.carried == (Carried("x0", "x1"),)
    assert loop.invariant == ("cos_full", "sin_full")
    assert loop.results == ("x30",)
    assert loop.twins["h12"] == "h0"
    assert find_loop(items, ["logits"]) == loop
    check(items, (loop,), ("logits",))
    buffers = live_buffers(items, (loop,), {v: (64, "token") for item in items for v in item.outputs}, ["logits"])
    assert plan(buffers).per_token == 64 * 5  # cos, sin, x, and two of q, a, m


def test_alternating_kinds_of_layers_make_a_longer_body() -> None:
    items = model((["local"] * 5 + ["full"]) * 3)
    (loop,) = find_loops(items, ["logits"])
    assert (loop.period, loop.count) == (30, 3)
    assert set(loop.invariant) == {"cos_full", "sin_full", "cos_local", "sin_local"}
    check(items, (loop,), ("logits",))


def test_what_is_left_over_makes_a_loop_of_its_own() -> None:
    items = model((["local"] * 5 + ["full"]) * 4 + ["local"] * 2)
    loops = find_loops(items, ["logits"])
    assert [(loop.period, loop.count) for loop in loops] == [(30, 4), (5, 2)]
    check(items, loops, ("logits",))


def test_first_and_last_layers_may_differ() -> None:
    items = model(["dense"] + ["sparse"] * 6 + ["last"])
    (loop,) = find_loops(items, ["logits"])
    assert (loop.start, loop.period, loop.count) == (2 + 5, 5, 6)
    check(items, (loop,), ("logits",))


def test_nothing_repeats_in_a_chain_of_different_regions() -> None:
    items = [Item(f"kind{n}", (f"x{n}",), (f"x{n + 1}",)) for n in range(20)]
    assert find_loops(items) == ()
    assert find_loop(items) is None
    assert find_loops([]) == ()


def test_values_of_inner_layers_that_are_read_at_the_end_forbid_a_loop() -> None:
    items = model(["full"] * 6)
    items[-1] = replace(items[-1], inputs=tuple(f"x{n}" for n in range(7)))
    assert find_loops(items, ["logits"]) == ()


def test_a_value_read_after_the_loop_ends_it() -> None:
    items = model(["full"] * 8)
    items[-1] = replace(items[-1], inputs=("x8", "m3"))
    loops = find_loops(items, ["logits"])
    assert [(loop.period, loop.count) for loop in loops] == [(5, 4), (5, 4)]
    check(items, loops, ("logits",))


def test_reading_two_layers_back_forbids_the_loop_of_one_layer() -> None:
    items = model(["full"] * 8)
    for number in range(2, 8):
        place = 2 + 5 * number
        items[place] = replace(items[place], inputs=(f"x{number}", f"m{number - 2}", "sin_full"))
    loops = find_loops(items, ["logits"])
    assert all(loop.period != 5 or loop.count == 2 for loop in loops)
    check(items, loops, ("logits",))


def test_an_initial_value_that_every_layer_reads_is_peeled_off() -> None:
    items = model(["full"] * 5)
    for number in range(5):
        place = 2 + 5 * number
        items[place] = replace(items[place], inputs=(f"x{number}", "x0", "sin_full"))
    (loop,) = find_loops(items, ["logits"])
    assert (loop.start, loop.period, loop.count) == (5, 5, 4)  # from the middle of the first layer
    assert loop.carried == (Carried("h0", "h1"),)
    assert "x0" in loop.invariant
    check(items, (loop,), ("logits",))


def test_values_that_cannot_replace_each_other_take_turns() -> None:
    swap = [Item("step", (f"x{n}",), (f"x{n + 1}",), (f"w{n}",)) for n in range(9)]
    (loop,) = find_loops([Item("start", (), ("x0",)), *swap], ["x9"])
    assert (loop.start, loop.period, loop.count, loop.carried) == (1, 2, 4, (Carried("x0", "x2"),))
    in_place = [replace(item, over=((item.outputs[0], item.inputs[0]),)) for item in swap]
    (loop,) = find_loops([Item("start", (), ("x0",)), *in_place], ["x9"])
    assert (loop.start, loop.period, loop.count) == (1, 1, 9)


def test_parts_of_a_value_written_by_several_regions() -> None:
    items = [Item("start", (), ("x0",))]
    for n in range(4):
        items += [
            Item("left", (f"x{n}",), (f"both{n}",), (f"l{n}",)),
            Item("right", (f"x{n}",), (f"both{n}",), (f"r{n}",)),
            Item("sum", (f"both{n}",), (f"x{n + 1}",)),
        ]
    (loop,) = find_loops(items, ["x4"])
    assert (loop.start, loop.period, loop.count) == (1, 3, 4)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from("ab"), max_size=3),
    st.lists(st.sampled_from("ab"), min_size=1, max_size=4),
    st.integers(1, 5),
    st.lists(st.sampled_from("abc"), max_size=3),
    st.data(),
)
def test_loops_compute_what_the_items_compute(
    before: list[str], period: list[str], count: int, after: list[str], data: st.DataObject
) -> None:
    kinds = before + period * count + after
    items = model(kinds)
    for _ in range(data.draw(st.integers(0, 2))):  # an extra reading somewhere: loops must notice
        place = data.draw(st.integers(0, len(items) - 1))
        value = data.draw(st.sampled_from(["x0", "h0", "m1", "x2", "cos_a", "positions"]))
        defined = next((n for n, item in enumerate(items) if value in item.outputs), -1)
        if defined < place and all(value != source for _, source in items[place].over):
            late = [(n, item) for n, item in enumerate(items) if any(source == value for _, source in item.over)]
            for n, item in late:
                items[n] = replace(item, over=())
            items[place] = replace(items[place], inputs=(*items[place].inputs, value))
    loops = find_loops(items, ["logits"])
    check(items, loops, ("logits",))


def test_deep_models_take_little_time() -> None:
    began = time.process_time()
    (loop,) = find_loops(model(["full"] * 160), ["logits"])
    assert loop.count == 160
    illegal = model(["full"] * 160)
    illegal[-1] = replace(illegal[-1], inputs=tuple(f"x{n}" for n in range(161)))
    assert find_loops(illegal, ["logits"]) == ()
    assert time.process_time() - began < 20
