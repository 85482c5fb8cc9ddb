"""Weights as recipes: what they compute, what they read and keep, and when two are the same."""

import gc
import weakref
from collections.abc import Collection

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from llmc.errors import BadInput, InvalidGraph
from llmc.ir.weights import Constant, Expr, Source, evaluate_each

aten = torch.ops.aten


class Shelf:
    """A reader of three tensors that notes what is read and what of it is still alive."""

    def __init__(self) -> None:
        self.tensors = {f"layer.{name}.weight": torch.full((2, 3), float(index)) for index, name in enumerate("qkv")}
        self.read_keys: list[str] = []
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def key(self, name: str) -> str:
        if name not in self.tensors:
            raise BadInput(f"no {name}")
        return name

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].dtype

    def read(self, key: str) -> torch.Tensor:
        self.read_keys.append(key)
        tensor = self.tensors[key].clone()
        self.alive.add(tensor)
        return tensor


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def source(shelf: Shelf, name: str) -> Source:
    return Source.of(shelf, f"layer.{name}.weight")


def test_a_source_reads_only_when_it_is_evaluated(shelf: Shelf) -> None:
    weight = source(shelf, "k")
    assert (weight.shape, weight.dtype, weight.name, weight.nbytes) == ((2, 3), torch.float32, "layer.k.weight", 24)
    assert shelf.read_keys == []
    assert torch.equal(weight.evaluate(), torch.ones(2, 3))
    assert shelf.read_keys == ["layer.k.weight"]


def test_an_expression_is_the_op_on_the_values(shelf: Shelf) -> None:
    fused = Expr.of(aten.cat.default, [source(shelf, name) for name in "qkv"], 0)
    cast = Expr.of(aten._to_copy.default, fused, dtype=torch.float16)
    assert (cast.shape, cast.dtype) == ((6, 3), torch.float16)
    assert shelf.read_keys == []
    assert torch.equal(cast.evaluate(), torch.tensor([0, 0, 1, 1, 2, 2]).half()[:, None].expand(6, 3))


def test_one_output_of_several_is_chosen(shelf: Shelf) -> None:
    last = Expr.of(aten.split.Tensor, source(shelf, "v"), 1, 1, output=2)
    assert last.shape == (2, 1)
    assert torch.equal(last.evaluate(), torch.full((2, 1), 2.0))
    assert last.describe() == "split(v.weight, 1, 1)[2]"
    with pytest.raises(InvalidGraph, match="name one with output="):
        Expr.of(aten.split.Tensor, source(shelf, "v"), 1, 1)


def test_what_is_used_twice_is_read_and_computed_once(shelf: Shelf) -> None:
    weight: Expr | Source = source(shelf, "k")
    for _ in range(40):
        weight = Expr.of(aten.add.Tensor, weight, weight)
    assert weight.evaluate()[0, 0].item() == 2.0**40
    assert shelf.read_keys == ["layer.k.weight"]


def test_nothing_is_kept_after_the_evaluation(shelf: Shelf) -> None:
    fused = Expr.of(aten.cat.default, [source(shelf, "q"), source(shelf, "q"), source(shelf, "k")], 0)
    value = fused.evaluate()
    gc.collect()
    assert value.shape == (6, 3)
    assert len(shelf.alive) == 0


def test_intermediates_are_dropped_after_their_last_use(shelf: Shelf) -> None:
    alive_at_negation: list[int] = []

    def negate(tensor: torch.Tensor) -> torch.Tensor:
        alive_at_negation.append(len(shelf.alive))
        return -tensor

    total = Expr.of(aten.add.Tensor, source(shelf, "k"), source(shelf, "v"))
    weight = Expr(negate, (total,), {}, (2, 3), torch.float32)
    assert weight.evaluate()[0, 0].item() == -3.0
    assert alive_at_negation == [0]


def test_no_gradients_are_recorded(shelf: Shelf) -> None:
    shelf.tensors["layer.q.weight"].requires_grad_()
    weight = Expr.of(aten.mul.Tensor, source(shelf, "q"), 2.0)
    assert not weight.evaluate().requires_grad
    assert not source(shelf, "q").evaluate().requires_grad


def test_weights_are_equal_when_they_compute_the_same_thing(shelf: Shelf) -> None:
    q, k = source(shelf, "q"), source(shelf, "k")
    assert q == source(shelf, "q") and q != k and q != source(Shelf(), "q")
    assert Expr.of(aten.cat.default, [q, k], 0) == Expr.of(aten.cat.default, (q, k), 0)
    assert Expr.of(aten.cat.default, [q, k], 0) != Expr.of(aten.cat.default, [k, q], 0)
    assert Expr.of(aten.sum.dim_IntList, q, [0], True) != Expr.of(aten.sum.dim_IntList, q, [0], False)
    assert Expr.of(aten.mul.Tensor, q, 1) != Expr.of(aten.mul.Tensor, q, 1.0) != Expr.of(aten.mul.Tensor, q, True)
    assert len({q, source(shelf, "q"), k}) == 2


def test_constants_are_equal_when_their_content_is() -> None:
    ones = Constant(torch.ones(2, 2))
    assert ones == Constant(torch.ones(2, 2)) == Constant(torch.ones(2, 4)[:, ::2])
    assert ones != Constant(torch.ones(4)) and ones != Constant(torch.ones(2, 2, dtype=torch.bfloat16))
    assert ones != Constant(torch.zeros(2, 2))
    assert Constant(torch.tensor(0.0)) != Constant(torch.tensor(-0.0))
    assert ones.evaluate() is ones.evaluate()


def test_a_recipe_is_described_as_a_call(shelf: Shelf) -> None:
    fused = Expr.of(aten.cat.default, [source(shelf, "q"), source(shelf, "k")], 0)
    scaled = Expr.of(aten.mul.Tensor, fused, Constant(torch.tensor(0.5)))
    cast = Expr.of(aten._to_copy.default, scaled, dtype=torch.float16)
    assert cast.describe() == "_to_copy(mul(cat((q.weight, k.weight), 0), 0.5), dtype=float16)"
    assert repr(Constant(torch.ones(3))) == "Constant(constant float32[3]: float32[3])"
    assert Constant(torch.ones(3), name="inv_freq").describe() == "inv_freq"


def test_sources_are_the_tensors_read_each_once(shelf: Shelf) -> None:
    q, k = source(shelf, "q"), source(shelf, "k")
    fused = Expr.of(aten.cat.default, [k, q, k], 0)
    assert Expr.of(aten.add.Tensor, fused, fused).sources() == [k, q]


def test_a_fake_tensor_has_the_shape_and_reads_nothing(shelf: Shelf) -> None:
    mode = FakeTensorMode()
    fake = Expr.of(aten.t.default, source(shelf, "q")).fake(mode)
    assert isinstance(fake, FakeTensor) and fake.shape == (3, 2) and fake.fake_mode is mode
    assert shelf.read_keys == []


def test_a_tensor_that_is_not_as_announced_is_refused(shelf: Shelf) -> None:
    weight = source(shelf, "q")
    shelf.tensors["layer.q.weight"] = torch.zeros(3, 3, dtype=torch.float16)
    with pytest.raises(BadInput, match=r"layer\.q\.weight: read float16\[3, 3\], expected float32\[2, 3\]"):
        weight.evaluate()


def test_arguments_must_be_weights_or_constants(shelf: Shelf) -> None:
    with pytest.raises(InvalidGraph, match="Tensor is no weight and no constant; use Constant"):
        Expr.of(aten.add.Tensor, source(shelf, "q"), torch.ones(2, 3))


def test_outputs_of_one_call_are_computed_together_and_only_then() -> None:
    calls = []

    class Counting:
        def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
            calls.append(1)
            return [x + 1, x + 2]

    halves, one = Counting(), Constant(torch.ones(3))
    parts = [Expr(halves, (one,), {}, (3,), torch.float32, output=output) for output in (0, 1)]
    found = dict(evaluate_each({"a": parts[0], "b": parts[1], "one": one, "again": parts[0]}))
    assert [value[0].item() for value in found.values()] == [2.0, 3.0, 1.0, 2.0]
    assert list(found) == ["a", "b", "one", "again"]
    assert len(calls) == 2
