"""Views of buffers move axes as torch's views of tensors do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.codegen.layout import Buffer, View, drop, expand, fresh, insert, narrow, permute, reshape

ROWS = 5


def _buffer(width: int) -> Buffer:
    return Buffer(0, "x", "T", width, "f32", "arena")


def _read(view: View, memory: torch.Tensor) -> torch.Tensor:
    """The tensor that a view shows of memory [ROWS, width]."""
    sizes = [ROWS if axis.size is None else axis.size for axis in view.axes]
    strides = [view.buffer.width if axis.size is None else axis.stride for axis in view.axes]
    return torch.as_strided(memory, sizes, strides, view.offset)


def _example(shape: tuple[int | None, ...]) -> tuple[View, torch.Tensor, torch.Tensor]:
    """A view of that shape, its memory, and the tensor it shows."""
    width = 1
    for size in shape:
        width *= size or 1
    memory = torch.arange(ROWS * width).reshape(ROWS, width)
    view = fresh(_buffer(width), shape)
    return view, memory, _read(view, memory)


@given(
    st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4),
    st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 12]), min_size=1, max_size=4),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_a_reshape_that_needs_no_copy_shows_what_torch_shows(
    sizes: list[int], wanted: list[int], at: int, random
) -> None:
    shape: list[int | None] = list(sizes)
    place = min(at, len(shape))
    shape.insert(place, None)
    view, memory, tensor = _example(tuple(shape))
    order = list(range(len(shape)))
    if random.random() < 0.5:
        random.shuffle(order)
        view, tensor = permute(view, order), tensor.permute(order)
    target: list[int | None] = list(wanted)
    target.insert(random.randint(0, len(target)), None)
    made = reshape(view, tuple(target))
    if made is not None:
        assert torch.equal(_read(made, memory), tensor.reshape([ROWS if size is None else size for size in target]))


@pytest.mark.parametrize(
    ("shape", "target"),
    [((None, 12), (None, 3, 4)), ((None, 3, 4), (None, 12)), ((1, None, 6), (None, 2, 3)), ((None, 1, 6), (None, 6))],
)
def test_heads_are_split_and_joined_without_a_copy(
    shape: tuple[int | None, ...], target: tuple[int | None, ...]
) -> None:
    view, memory, tensor = _example(shape)
    made = reshape(view, target)
    assert made is not None
    assert torch.equal(_read(made, memory), tensor.reshape([ROWS if size is None else size for size in target]))


def test_rows_do_not_mix_with_other_axes() -> None:
    view, _, _ = _example((None, 4))
    assert reshape(view, (4, None)) is None
    assert reshape(view, (20,)) is None


def test_heads_that_were_moved_apart_need_a_copy() -> None:
    view, _, _ = _example((None, 3, 4))
    assert reshape(permute(view, [0, 2, 1]), (None, 12)) is None


def test_slices_and_selections_read_where_torch_reads() -> None:
    view, memory, tensor = _example((None, 6, 4))
    part = narrow(view, 1, 1, 3, 2)
    assert part is not None and torch.equal(_read(part, memory), tensor[:, 1:6:2])
    one = narrow(view, 2, 3, 1)
    assert one is not None and torch.equal(_read(drop(one, 2), memory), tensor[:, :, 3])
    assert narrow(view, 0, 1, 2) is None


def test_axes_of_size_one_are_repeated() -> None:
    view, memory, tensor = _example((None, 1, 4))
    wide = expand(view, (None, 3, 4))
    assert wide is not None and torch.equal(_read(wide, memory), tensor.expand(ROWS, 3, 4))
    assert expand(view, (None, 1, 8)) is None
    assert torch.equal(_read(insert(view, 2), memory), tensor.unsqueeze(2))


def test_contiguity_is_that_of_the_elements_of_a_row() -> None:
    view, _, _ = _example((None, 3, 4))
    assert view.is_contiguous
    assert not permute(view, [0, 2, 1]).is_contiguous
    assert permute(view, [1, 0, 2]).is_contiguous  # where the row axis stands does not matter
