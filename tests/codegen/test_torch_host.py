"""Torch as the host of a program: the right numbers in the right places, the same for any number of rows."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import fx, nn

from llmc.codegen.torch_calls import Layout, TorchCall
from llmc.codegen.torch_host import TorchHost
from llmc.ir.model import Origin


def host(
    target: Callable[..., object], given: Sequence[tuple[str, Layout]], result: Layout, rows: str = "T", *more: object
) -> TorchHost:
    """The host of one op on values of these types."""
    graph = fx.Graph()
    inputs = []
    for place, (type_, _) in enumerate(given):
        inputs.append(graph.placeholder(f"x{place}"))
        inputs[-1].meta.update(type=type_, origin=Origin())
    node = graph.call_function(target, (*inputs, *more))
    node.meta.update(type="f32[T, 4]", origin=Origin())
    graph.output((node,))
    layouts = tuple(layout for _, layout in given)
    return TorchHost([TorchCall(rows, layouts, (result,), fx.GraphModule(nn.Module(), graph))], b"")  # type: ignore[arg-type]


def rows_of(width: int) -> Layout:
    return Layout("f32", "T", width, ((None, 0), (width, 1)))


def run(made: TorchHost, tokens: int, *arrays: np.ndarray, rows: int = 1) -> None:
    made.run(0, [array.ctypes.data for array in arrays], tokens, rows)


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_values_are_read_and_written_where_they_lie(tokens: int) -> None:
    """The input is columns 1, 3, 5 of rows of 8; the output lies as [3, tokens] in rows of 3."""
    part = Layout("f32", "T", 8, ((None, 0), (3, 2)), 1)
    turned = Layout("f32", "T", 3, ((3, 1), (None, 0)))
    x = np.random.default_rng(0).standard_normal((tokens, 8), np.float32)
    y = np.full((tokens, 3), np.nan, np.float32)
    run(host(torch.ops.aten.permute.default, [("f32[T, 3]", part)], turned, "T", [1, 0]), tokens, x, y)
    assert np.array_equal(y, x[:, 1:6:2])


def test_values_are_computed_in_the_dtype_of_the_model() -> None:
    x = np.array([[1.0, 1.0 / 3, 100.3, -2.7]], np.float32)
    y = np.zeros_like(x)
    run(host(torch.ops.aten.erfc.default, [("bf16[T, 4]", rows_of(4))], rows_of(4)), 1, x, y)
    assert np.array_equal(y, torch.erfc(torch.from_numpy(x).bfloat16()).float().numpy())


def test_flags_are_bytes_and_numbers_are_eight() -> None:
    flags = Layout("u8", "T", 4, ((None, 0), (4, 1)))
    x, choose, y = np.ones((2, 4), np.float32), np.array([[0, 1, 0, 1]] * 2, np.uint8), np.zeros((2, 4), np.float32)
    made = host(
        torch.ops.aten.masked_fill.Scalar, [("f32[T, 4]", rows_of(4)), ("bool[T, 4]", flags)], rows_of(4), "T", 9
    )
    run(made, 2, x, choose, y)
    assert np.array_equal(y, [[1, 9, 1, 9]] * 2)


@pytest.mark.parametrize("op", [torch.ops.aten.erfc.default, torch.ops.aten.exp.default, torch.ops.aten.tanh.default])
def test_a_row_has_the_same_bits_in_any_batch(op: Callable[..., object]) -> None:
    x = np.random.default_rng(1).standard_normal((37, 13), np.float32)
    y = np.zeros_like(x)
    run(host(op, [("f32[T, 13]", rows_of(13))], rows_of(13)), 37, x, y)
    for row in (0, 11, 36):
        alone = np.zeros((1, 13), np.float32)
        run(host(op, [("f32[T, 13]", rows_of(13))], rows_of(13)), 1, x[row : row + 1].copy(), alone)
        assert np.array_equal(alone[0], y[row])


def test_rows_of_logits_may_be_none() -> None:
    layout = Layout("f32", "R", 4, ((None, 0), (4, 1)))
    x, y = np.ones((1, 4), np.float32), np.full((1, 4), 7, np.float32)
    run(host(torch.ops.aten.erfc.default, [("f32[R, 4]", layout)], layout, "R"), 5, x, y, rows=0)
    assert (y == 7).all()


def test_what_has_no_rows_is_computed_once_and_expanded() -> None:
    table = Layout("f32", "", 4, ((None, 0), (4, 1)))
    x, y = np.arange(4, dtype=np.float32), np.zeros((3, 4), np.float32)
    run(host(torch.ops.aten.erfc.default, [("f32[T, 4]", table)], rows_of(4)), 3, x, y)
    assert np.array_equal(y, np.tile(torch.erfc(torch.from_numpy(x)).numpy(), (3, 1)))


def test_threads_of_torch_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = np.ones((1, 4), np.float32)
        run(host(torch.ops.aten.erfc.default, [("f32[T, 4]", rows_of(4))], rows_of(4)), 1, x, x.copy())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
