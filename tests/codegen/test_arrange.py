"""Orders in which layers repeat."""

from llmc.codegen.arrange import arrange
from llmc.codegen.repeats import Item


def layer(number: int, *extra: str) -> list[Item]:
    x, y = f"x{number}", f"x{number + 1}"
    return [
        Item("qkv", (x, *(extra or ("table",))), (f"q{number}",), (f"w{number}",), (f"c{number}",)),
        Item("down", (f"q{number}", x), (y,), over=((y, x),)),
    ]


def test_a_table_that_the_first_layer_makes_for_all_is_put_first() -> None:
    first = layer(0)
    items = [
        Item("embed", ("tokens",), ("x0",)),
        Item("norm", ("x0",), ("n0",)),
        Item("table", ("positions",), ("table",)),
    ]
    items += first
    for number in range(1, 5):
        items += [Item("norm", (f"x{number}",), (f"n{number}",)), *layer(number)]
    order, (loop,) = arrange(items, ["x5"])
    assert order == [2, 0, 1, *range(3, len(items))]
    assert (loop.start, loop.period, loop.count) == (2, 3, 5)
    assert loop.invariant == ("table",)


def test_tables_of_single_layers_stay_where_they_are() -> None:
    items = [Item("embed", ("tokens",), ("x0",))]
    for number in range(4):
        made = f"table{number}"
        items += [Item("table", ("positions",), (made,), (f"t{number}",)), *layer(number, made)]
    order, (loop,) = arrange(items, ["x4"])
    assert order == list(range(len(items)))
    assert (loop.start, loop.period, loop.count) == (1, 3, 4)
