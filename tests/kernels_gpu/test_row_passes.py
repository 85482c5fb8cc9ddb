"""How the operations of a region share one kernel: what stays in registers, barriers, and the programs of a row."""

import torch
from support.row_regions import Rows, axes, close

from llmc.codegen.layout import Scalar, View, reshape


def test_what_follows_on_the_same_elements_stays_in_registers() -> None:
    rows = Rows(rows=2)
    x, residual, weight = rows.tensor([70]), rows.tensor([70]), rows.weight(torch.randn(70))
    normed, total, sizes, share = rows.new([None, 70]), rows.new([None, 70]), rows.new([None, 1]), rows.new([None, 70])
    rows.op("rms_norm", [x, weight, None], normed, eps=1e-5, offset=0.0)
    rows.op("add", [residual, normed], total)
    rows.op("sum", [total], sizes, size=70)
    rows.op("div", [total, View(sizes.buffer, axes(sizes, None, (1, 0)).axes)], share)
    text = rows.run().kernel.text("kernel")
    assert text.count("tl.load") == 3 and "barrier" not in text
    close(rows, share, rows.read(total) / rows.read(total).sum(-1, keepdim=True), 1e-5)


def test_numbers_that_come_of_a_row_are_computed_after_it() -> None:
    rows = Rows(rows=2)
    x, sizes, safe, share = rows.tensor([9]), rows.new([None, 1]), rows.new([None, 1]), rows.new([None, 9])
    rows.op("sum", [x], sizes, size=9)
    rows.op("add", [sizes, Scalar(100.0, "f32")], safe)
    rows.op("div", [x, safe], share)
    rows.run()
    a = rows.read(x)
    close(rows, share, a / (a.sum(-1, keepdim=True) + 100))


def test_a_barrier_stands_where_elements_of_other_threads_are_read() -> None:
    rows = Rows(rows=2)
    x = rows.tensor([12])
    first, second, third = rows.new([None, 12]), rows.new([None, 3, 4]), rows.new([None, 12])
    rows.op("exp", [x], first)
    halves = reshape(first, (None, 3, 4))
    assert halves is not None
    rows.op("softmax", [halves], second, size=4)
    rows.op("neg", [x], third)
    text = rows.run().kernel.text("kernel")
    assert text.count("debug_barrier") == 1
    close(rows, second, rows.read(x).exp().view(2, 3, 4).softmax(-1))


def test_wide_rows_are_split_over_programs() -> None:
    rows = Rows(rows=2)
    x, out = rows.tensor([5000]), rows.new([None, 5000])
    rows.op("tanh", [x], out)
    draft = rows.run()
    assert draft.grid[1].at({"T": 2}) == 5
    close(rows, out, rows.read(x).tanh())


def test_a_number_beside_a_wide_row_is_stored_by_one_program() -> None:
    rows = Rows(rows=2)
    positions = rows.step("positions", torch.tensor([3, 40]))
    x, number, out = rows.tensor([5000]), rows.new([None]), rows.new([None, 5000])
    rows.op("copy", [positions], number)
    rows.op("mul", [x, View(number.buffer, axes(number, None, (1, 0)).axes)], out)
    draft = rows.run()
    assert draft.grid[1].at({"T": 2}) == 1
    close(rows, out, rows.read(x) * torch.tensor([[3.0], [40.0]]), 0)


def test_dependent_launches_wait_before_anything_else() -> None:
    rows = Rows(pdl=True)
    rows.op("exp", [rows.tensor([4])], rows.new([None, 4]))
    draft = rows.draft()
    assert draft.kernel.pdl and draft.kernel.lines[0] == "tl.extra.cuda.gdc_wait()"
