"""Row kernels against torch: every operation, at odd sizes, over views with strides, alone and after others."""

import pytest
import torch
from support.rearranged_weights import part_names, rearranged
from support.row_regions import Rows, axes, close
from torch.nn.functional import gelu, softplus

from llmc.codegen.layout import Scalar, View, permute
from llmc.codegen.triton.linear_formats import FORMS
from llmc.ir.ops import ACTIVATIONS
from llmc.ir.packed_formats import unpack
from llmc.runtime.program import CacheSpec

UNARY = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "cos": torch.cos, "sin": torch.sin, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "relu": torch.relu, "silu": ACTIVATIONS["silu"], "gelu": gelu, "erf": torch.erf,
    "gelu_tanh": ACTIVATIONS["gelu_tanh"], "quick_gelu": ACTIVATIONS["quick_gelu"], "relu2": ACTIVATIONS["relu2"],
    "floor": torch.floor, "reciprocal": torch.reciprocal, "softplus": softplus, "square": torch.square,
    "copy": torch.clone,
}  # fmt: skip
POSITIVE = {"log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt}
BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "rsub": torch.rsub,
    "maximum": torch.maximum, "minimum": torch.minimum, "remainder": torch.remainder,
    "floor_divide": torch.floor_divide,
}  # fmt: skip
COMPARISONS = {"eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge}


@pytest.mark.parametrize("width", [1, 7, 64, 1300])
def test_pointwise_operations_of_one_value(width: int) -> None:
    rows = Rows()
    x = rows.tensor([width])
    positive = rows.set(rows.tensor([width]), rows.read(x).abs() + 0.1)
    for name in (*UNARY, *POSITIVE):
        rows.op(name, [x if name in UNARY else positive], rows.new([None, width]))
    rows.run()
    for op in rows.ops:
        close(rows, op.outputs[0], (UNARY | POSITIVE)[op.op](rows.read(op.inputs[0])))


@pytest.mark.parametrize("dtype", ["f32", "i64"])
def test_pointwise_operations_of_two_values(dtype: str) -> None:
    rows = Rows()
    x, y = rows.tensor([3, 5], dtype), rows.tensor([5], dtype)  # broadcast: [T, 3, 5] and [T, 1, 5]
    if dtype == "i64":
        rows.read(y)[rows.read(y) == 0] = -3
    wide = View(y.buffer, (y.axes[0], *axes(y, (1, 0), (5, 1)).axes))
    names = [name for name in BINARY if dtype == "f32" or name != "div"]
    for name in (*names, *COMPARISONS):
        kind = "u8" if name in COMPARISONS else dtype
        rows.op(name, [x, wide], rows.new([None, 3, 5], kind))
    number = Scalar(-3, "i64")
    for name in (*names, *COMPARISONS):
        rows.op(name, [x, number], rows.new([None, 3, 5], "u8" if name in COMPARISONS else dtype))
    rows.run()
    for op in rows.ops:
        other = torch.tensor(-3) if op.inputs[1] is number else rows.read(wide)
        close(rows, op.outputs[0], (BINARY | COMPARISONS)[op.op](rows.read(x), other))


def test_numbers_of_other_dtypes_are_taken_for_what_the_result_is() -> None:
    rows = Rows()
    x, whole, truth = rows.tensor([9]), rows.tensor([9], "i64"), rows.tensor([9], "u8")
    for name, inputs, kind in [
        ("mul", [x, whole], "f32"), ("add", [whole, truth], "i64"), ("div", [whole, Scalar(4, "i64")], "f32"),
        ("gt", [whole, Scalar(0.5, "f32")], "u8"), ("lt", [x, whole], "u8"), ("copy", [truth], "f32"),
        ("copy", [whole], "u8"), ("copy", [x], "i64"), ("copy", [whole], "f32"), ("mul", [truth, truth], "u8"),
        ("and", [truth, truth], "u8"), ("or", [truth, whole], "u8"), ("not", [truth], "u8"), ("not", [whole], "i64"),
        ("and", [whole, Scalar(6, "i64")], "i64"), ("where", [truth, x, Scalar(float("-inf"), "f32")], "f32"),
        ("where", [truth, Scalar(1, "i64"), Scalar(2, "i64")], "i64"), ("where", [truth, x, whole], "f32"),
        ("pow", [x, Scalar(2, "i64")], "f32"), ("pow", [Scalar(10000.0, "f32"), x], "f32"),
    ]:  # fmt: skip
        rows.op(name, inputs, rows.new([None, 9], kind))
    rows.run()
    a, b, c = (rows.read(v) for v in (x, whole, truth))
    wanted = [
        a * b, b + c, b / 4, b > 0.5, a < b, c.float(), b != 0, a.long(), b.float(), c, c, c | (b != 0), ~c, ~b, b & 6,
        torch.where(c, a, float("-inf")), torch.where(c, 1, 2), torch.where(c, a, b), a**2, 10000.0**a,
    ]  # fmt: skip
    for op, value in zip(rows.ops, wanted, strict=True):
        close(rows, op.outputs[0], value, 3e-6)


def test_clamps_scales_and_fills() -> None:
    rows = Rows()
    x, y = rows.tensor([40]), rows.tensor([40])
    out = [rows.new([None, 40]) for _ in range(5)]
    rows.op("clamp", [x], out[0], low=-0.5, high=None)
    rows.op("clamp", [x], out[1], low=-0.5, high=0.25)
    rows.op("sub", [x, y], out[2], alpha=2)
    rows.op("rsub", [x, y], out[3], alpha=2)
    rows.op("copy", [Scalar(1.5, "f32")], out[4])
    rows.read(x)[0, 0] = float("nan")
    rows.run()
    a, b = rows.read(x), rows.read(y)
    wanted = [a.clamp(min=-0.5), a.clamp(-0.5, 0.25), a - 2 * b, b - 2 * a, torch.full_like(a, 1.5)]
    for view, value in zip(out, wanted, strict=True):
        close(rows, view, value)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gated_activations(act: str) -> None:
    rows = Rows(rows=2)
    both = rows.tensor([2 * 37])
    gate, up = (View(both.buffer, axes(both, None, (37, 1)).axes, start) for start in (0, 37))
    out = rows.new([None, 37])
    rows.op("gated_act", [gate, up], out, act=act)
    rows.run()
    close(rows, out, ACTIVATIONS[act](rows.read(gate)) * rows.read(up))


@pytest.mark.parametrize("shape", [(1, 1), (1, 48), (5, 17), (3, 64), (2, 5000)], ids=str)
def test_norms(shape: tuple[int, int]) -> None:
    rows = Rows(rows=2)
    x = rows.tensor(shape)
    weight, bias = (rows.weight(torch.randn(shape[1], dtype=torch.bfloat16)) for _ in range(2))
    each = rows.weight(torch.randn(shape))
    out = [rows.new([None, *shape]) for _ in range(5)]
    rows.op("rms_norm", [x, weight, None], out[0], eps=1e-5, offset=1.0)
    rows.op("rms_norm", [x, None, None], out[1], eps=1e-6, offset=0.0)
    rows.op("rms_norm", [x, each, None], out[2], eps=1e-6, offset=0.0)
    rows.op("layer_norm", [x, weight, bias], out[3], eps=1e-5, offset=0.0)
    rows.op("layer_norm", [x, None, None], out[4], eps=1e-5, offset=0.0)
    rows.run()
    a, w, b = rows.read(x), rows.read(weight).float(), rows.read(bias).float()

    def rms(eps: float) -> torch.Tensor:
        return a * torch.rsqrt(a.square().mean(-1, keepdim=True) + eps)

    layer = torch.nn.functional.layer_norm(a, shape[1:], eps=1e-5)
    wanted = [rms(1e-5) * (1 + w), rms(1e-6), rms(1e-6) * rows.read(each), layer * w + b, layer]
    for view, value in zip(out, wanted, strict=True):
        close(rows, view, value, 5e-6)


@pytest.mark.parametrize("shape", [(1,), (13,), (4, 9), (3, 1), (2, 2500)], ids=str)
def test_reductions_and_scans(shape: tuple[int, ...]) -> None:
    rows = Rows()
    x, whole, truth = rows.tensor(shape), rows.tensor(shape, "i64"), rows.tensor(shape, "u8")
    rows.read(x)[1].flatten()[-1] = float("nan")
    outer = (None, *shape[:-1])
    for name in ("sum", "mean", "amax", "amin"):
        rows.op(name, [x], rows.new([*outer, 1] if name == "sum" else outer), size=shape[-1])
    for name in ("sum", "amax", "amin"):
        rows.op(name, [whole], rows.new(outer, "i64"), size=shape[-1])
    rows.op("sum", [truth], rows.new(outer, "i64"), size=shape[-1])
    for name in ("softmax", "log_softmax", "cumsum"):
        rows.op(name, [x], rows.new([None, *shape]), size=shape[-1])
    rows.op("cumsum", [whole], rows.new([None, *shape], "i64"), size=shape[-1])
    rows.op("cumsum", [truth], rows.new([None, *shape], "i64"), size=shape[-1])
    rows.run()
    for op in rows.ops:
        value = rows.read(op.inputs[0])
        wanted = getattr(torch, op.op)(value, dim=-1)
        close(rows, op.outputs[0], wanted.reshape(rows.read(op.outputs[0]).shape), 2e-5)


def test_softmax_of_a_row_with_hidden_elements() -> None:
    rows = Rows(rows=1)
    x = rows.tensor([6])
    rows.read(x)[0, 2:4] = float("-inf")
    out = rows.new([None, 6])
    rows.op("softmax", [x], out, size=6)
    rows.run()
    close(rows, out, rows.read(x).softmax(-1))


@pytest.mark.parametrize(("experts", "k"), [(5, 2), (8, 8), (60, 4), (33, 1)])
def test_topk_takes_the_first_of_equal_elements_and_nan_before_all(experts: int, k: int) -> None:
    rows = Rows(rows=4)
    x = rows.tensor([experts])
    data = rows.read(x)
    data[0] = data[0].round()  # ties
    data[1] = 0.0
    data[1, 1] = -0.0
    data[2, 3] = float("nan")
    data[3] = float("-inf")
    values, indices = rows.new([None, k]), rows.new([None, k], "i64")
    rows.op("topk", [x], [values, indices], k=k)
    rows.run()
    order = torch.where(data.isnan(), float("inf"), data).argsort(dim=-1, descending=True, stable=True)[:, :k]
    assert torch.equal(rows.read(indices), order)
    close(rows, values, data.gather(1, order))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("size", "rotated"), [(16, 16), (20, 12), (6, 6), (128, 32)])
def test_rotary_embeddings(interleaved: bool, size: int, rotated: int) -> None:
    rows = Rows()
    both = rows.tensor([3 * size + 5])
    x = axes(both, None, (3, size), (size, 1))
    cos, sin = rows.tensor([1, rotated]), rows.tensor([1, rotated])
    out = rows.new([None, 3, size])
    rows.op("rope", [x, cos, sin], out, interleaved=interleaved)
    rows.run()
    a, c, s = (rows.read(v) for v in (x, cos, sin))
    head, rest = a[..., :rotated], a[..., rotated:]
    if interleaved:
        turned = torch.stack((-head[..., 1::2], head[..., ::2]), -1).flatten(-2)
    else:
        turned = torch.cat((-head[..., rotated // 2 :], head[..., : rotated // 2]), -1)
    close(rows, out, torch.cat((head * c + turned * s, rest), -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gathers(dtype: torch.dtype) -> None:
    rows = Rows(rows=4)
    table = rows.weight(torch.randn(11, 3, 5).to(dtype))
    flat = rows.weight(torch.randn(11, 5).to(dtype))
    ids = rows.step("tokens", torch.tensor([0, 10, -1, 4]))
    out = [
        rows.new([None, 3, 5]),
        rows.new([None, 5]),
        rows.new([None, 4]),
        rows.new([None, 3, 2]),
        rows.new([None, 5]),
    ]
    rows.op("gather_rows", [table, ids], out[0])
    column = rows.set(rows.tensor([5], "i64"), torch.randint(0, 11, (4, 5)))
    rows.op("gather_table", [flat, column], out[1])
    x = rows.tensor([7])
    last = rows.set(rows.tensor([4], "i64"), torch.randint(0, 7, (4, 4)))
    rows.op("gather_last", [x, last], out[2])
    heads = rows.tensor([3, 5])
    chosen = rows.weight(torch.tensor([4, -4]))
    rows.op("select_columns", [heads, chosen], out[3], axis=2)
    shifted = rows.new([None], "i64")
    rows.op("add", [ids, Scalar(-1, "i64")], shifted)  # an index that was just computed
    rows.op("gather_rows", [flat, shifted], out[4])
    rows.run()
    token = rows.read(ids)
    wanted = [
        rows.read(table)[token], rows.read(flat).gather(0, rows.read(column)),
        rows.read(x).gather(1, rows.read(last)), rows.read(heads)[:, :, [4, 1]], rows.read(flat)[token - 1],
    ]  # fmt: skip
    for view, value in zip(out, wanted, strict=True):
        close(rows, view, value.float(), 0)


@pytest.mark.parametrize("format", FORMS)
def test_rows_of_packed_tables(format: str) -> None:
    n, k = 40, 110
    parts, memory = rearranged("table", torch.randn(n, k, generator=torch.Generator().manual_seed(1)), format)
    rows = Rows(rows=4)
    rows.given |= {("weight", name): data for name, data in memory.items()}
    tokens = rows.step("tokens", torch.tensor([0, 39, 17, 16]))
    out, twice = rows.new([None, k]), rows.new([None, k])
    rows.op("gather_packed", [tokens], out, weights=part_names("table", format), format=format, n=n, k=k)
    rows.op("mul", [out, Scalar(2.0, "f32")], twice)
    rows.run()
    wanted = unpack(parts, format, n, k)[rows.read(tokens)]
    close(rows, out, wanted, 1e-6)
    close(rows, twice, 2 * wanted, 1e-6)


def test_scatters_over_a_copy_or_a_number() -> None:
    rows = Rows(rows=2)
    source, value = rows.tensor([9]), rows.tensor([3])
    index = rows.set(rows.tensor([3], "i64"), torch.tensor([[8, 0, 3], [1, 2, 7]]))
    first, second = rows.new([None, 9]), rows.new([None, 9])
    rows.op("scatter_last", [source, index, value], first)
    rows.op("scatter_last", [Scalar(0.0, "f32"), index, Scalar(1.0, "f32")], second)
    after = rows.new([None, 9])
    rows.op("mul", [first, second], after)
    rows.run()
    wanted = rows.read(source).scatter(1, rows.read(index), rows.read(value))
    marks = torch.zeros(2, 9).scatter(1, rows.read(index), 1.0)
    for view, tensor in ((first, wanted), (second, marks), (after, wanted * marks)):
        close(rows, view, tensor, 0)


def test_moves_between_views() -> None:
    """Permuted, repeated and joined values, a reshape that needs a copy, and rows that are looked up."""
    rows = Rows(rows=5, wanted=(4, 0, 4))
    x = rows.tensor([4, 6])
    turned = permute(x, [0, 2, 1])
    flat = rows.new([None, 24])
    rows.op("copy_flat", [turned], flat)
    repeated = rows.new([None, 4, 18])
    rows.op("repeat_last", [x], repeated, repeats=3)
    joined = rows.new([None, 4, 8])
    wide = rows.tensor([4, 2])
    rows.op("copy", [x], View(joined.buffer, axes(joined, None, (4, 8), (6, 1)).axes))
    rows.op("copy", [wide], View(joined.buffer, axes(joined, None, (4, 8), (2, 1)).axes, 6))
    read_again = rows.new([None, 4, 8])
    rows.op("neg", [joined], read_again)
    rows.run()
    a = rows.read(x)
    close(rows, flat, a.transpose(1, 2).reshape(5, 24), 0)
    close(rows, repeated, a.repeat_interleave(3, -1), 0)
    close(rows, joined, torch.cat((a, rows.read(wide)), -1), 0)
    close(rows, read_again, -rows.read(joined), 0)

    picked = Rows(rows=5, wanted=(4, 0, 4))
    x = picked.tensor([7])
    out = picked.new([None, 7], domain="R")
    picked.op("copy", [View(x.buffer, x.axes, 0, True)], out)
    picked.run()
    close(picked, out, picked.read(x)[[4, 0, 4]], 0)


def test_values_of_no_rows_are_computed_once() -> None:
    rows = Rows()
    x, y = rows.tensor([2, 5], domain=""), rows.tensor([5], domain="")
    out, total = rows.new([2, 5], domain=""), rows.new([2], domain="")
    rows.op("add", [x, y], out)
    rows.op("sum", [out], total, size=5)
    draft = rows.run()
    assert [extent.at({"T": 3, "R": 2, "B": 1}) for extent in draft.grid] == [1, 1, 1]
    close(rows, total, (rows.read(x) + rows.read(y)).sum(-1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_go_to_their_slots(dtype: str) -> None:
    spec = CacheSpec(heads=3, key_size=20, value_size=16, dtype=dtype)
    rows = Rows(rows=4, caches=(spec,), pdl=True)
    slots = rows.step("slots", torch.tensor([300, 5, 0, 129]))
    kind = getattr(torch, dtype)
    k, v = torch.full((3, 3, 128, 20), -7.0).to(kind), torch.full((3, 3, 128, 16), -7.0).to(kind)
    rows.given["cache", "k0"], rows.given["cache", "v0"] = k, v
    x, weight = rows.tensor([3, 20]), rows.weight(torch.randn(20))
    packed = rows.tensor([50])
    value = axes(packed, None, (3, 16), (16, 1))
    normed = rows.new([None, 3, 20])
    rows.op("rms_norm", [x, weight, None], normed, eps=1e-5, offset=0.0)
    rows.op("write_k", [normed], slots, layer=0)
    rows.op("write_v", [value], slots, layer=0)
    rows.run()
    for cache, view in ((k, normed), (v, value)):
        wanted = torch.full_like(cache, -7.0)
        for row, slot in enumerate(rows.read(slots).tolist()):
            wanted[slot // 128, :, slot % 128] = rows.read(view)[row].to(kind)
        assert torch.equal(cache, wanted)
