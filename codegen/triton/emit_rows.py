"""Kernels of row operations: a program for each row, or for some elements of a row where that is all a region needs."""

from collections.abc import Callable
from itertools import count
from math import prod

from llmc.codegen.layout import View
from llmc.codegen.regions import RowOp, RowRegion
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_gather import emit_gather_packed
from llmc.codegen.triton.kernel import Draft, KernelText, rows_of
from llmc.codegen.triton.row_moves import (
    emit_gather_last,
    emit_gather_rows,
    emit_gather_table,
    emit_rope,
    emit_scatter_into,
    emit_select_columns,
)
from llmc.codegen.triton.row_passes import Pass, barriers, passes_of, shape_of
from llmc.codegen.triton.row_pointwise import emit_pointwise
from llmc.codegen.triton.row_reductions import emit_norm, emit_reduction, emit_scan, emit_topk, emit_write
from llmc.codegen.triton.row_values import Elements
from llmc.runtime.cuda.plan import ONE, Extent, When

_PER_WARP = 512
"""Elements that a warp holds in registers at a time: 16 a thread."""
_MOST_WARPS = 8
"""Of a program that goes through a row, but for rows that must be taken whole."""
_BARRIERS = 4
"""In a loop over a row: what it gathers and what it stores lie differently over threads."""
_SPLIT = 1024
"""Elements of a program where a row is split over several."""

_MOVES: dict[str, Callable[[Elements, RowOp], None]] = {
    "gather_rows": emit_gather_rows, "gather_table": emit_gather_table, "gather_last": emit_gather_last,
    "select_columns": emit_select_columns, "scatter_into": emit_scatter_into, "rope": emit_rope,
    "gather_packed": emit_gather_packed,
}  # fmt: skip
_WHOLE: dict[str, Callable[[Elements, RowOp, Context], None]] = {
    "rms_norm": emit_norm, "layer_norm": emit_norm, "softmax": emit_scan, "log_softmax": emit_scan,
    "cumsum": emit_scan, "sum": emit_reduction, "mean": emit_reduction, "amax": emit_reduction,
    "amin": emit_reduction, "topk": emit_topk, "write_k": emit_write, "write_v": emit_write,
}  # fmt: skip


def emit_rows(region: RowRegion, context: Context) -> list[Draft]:
    """The launch of one region."""
    passes = passes_of(region.ops)
    alone = len(passes) == 1 and all(map(shape_of, passes[0].ops))  # numbers of a row are stored by one program
    warps = max(_warps(one, split=alone) for one in passes)
    comment = " ".join(dict.fromkeys(op.op for op in region.ops))
    kernel = KernelText("rows", comment, warps=warps, pdl=context.pdl, most_barriers=_BARRIERS)
    if context.pdl:
        kernel.add("tl.extra.cuda.gdc_wait()", "tl.extra.cuda.gdc_launch_dependents()")
    symbol = rows_of(region.domain)
    if symbol:
        kernel.add("row = tl.program_id(0).to(tl.int64)")
    views = [value for op in region.ops for value in (*op.inputs, *op.outputs) if isinstance(value, View)]
    if any(view.indirect for view in views):
        kernel.add(f"wanted = tl.load({kernel.step('rows')} + row)")
    names = count()
    if alone:
        blocks = emit_pass(Elements(kernel, passes[0], "row" if symbol else "", names), context, split=True)
        return [Draft(kernel, (Extent(symbol), Extent(times=blocks), ONE), When(symbol))]
    for number, (one, waits) in enumerate(zip(passes, barriers(passes), strict=True)):
        if waits:
            kernel.add("tl.debug_barrier()")
        suffix = f"_{number}" if number else ""
        emit_pass(Elements(kernel, one, "row" if symbol else "", names, suffix), context, split=False)
    return [Draft(kernel, (Extent(symbol), ONE, ONE), When(symbol))]


def emit_pass(elements: Elements, context: Context, *, split: bool) -> int:
    """Add one pass: its numbers, then its elements. With `split` over several programs: gives how many."""
    one = elements.one
    numbers = [op for op in one.ops if not shape_of(op)]
    for op in numbers:
        _emit_op(elements, op, context)
    if not one.shape:
        return 1
    tile = tile_of(one, split=split)
    blocks = _place(elements, tile, split=split)
    for op in one.ops:
        if op not in numbers:
            _emit_op(elements, op, context)
    elements.pad = ""
    return blocks


def tile_of(one: Pass, *, split: bool) -> tuple[int, int]:
    """Groups and columns that a program works on at a time; where rows are not taken whole, 1 and elements."""
    most = _SPLIT if split else _PER_WARP * _MOST_WARPS
    if not one.whole:
        return 1, min(power_of_two(one.elements), most)
    columns = power_of_two(one.shape[-1])
    return min(power_of_two(prod(one.shape[:-1])), max(1, most // columns)), columns


def power_of_two(size: int) -> int:
    """The least power of two that is not below a size of at least 1."""
    return 1 << (size - 1).bit_length()


def _place(elements: Elements, tile: tuple[int, int], *, split: bool) -> int:
    """Say which elements a program has, in a loop where a tile does not hold them: gives how many blocks there are."""
    one, suffix = elements.one, elements.suffix
    elements.tile = tile
    count_, places = (prod(one.shape[:-1]), tile[0]) if one.whole else (one.elements, tile[1])
    name = elements.group if one.whole else f"element{suffix}"
    blocks = -(-count_ // places)
    start = ""
    if blocks > 1 and split:
        start = f"tl.program_id(1) * {places} + "
    elif blocks > 1:
        elements.add(f"for start{suffix} in range(0, {count_}, {places}):")
        elements.pad = "    "
        start = f"start{suffix} + "
    if one.whole:
        elements.add(f"{elements.column} = tl.arange(0, {tile[1]})[None, :]")
        elements.add(f"{name} = {start}tl.arange(0, {places})[:, None]")
        if tile[1] != one.shape[-1]:
            elements.add(f"in_row{suffix} = {elements.column} < {one.shape[-1]}")
            elements.masks["column"] = f"in_row{suffix}"
    else:
        elements.add(f"{name} = {start}tl.arange(0, {places})")
    if count_ % places:
        elements.add(f"live{suffix} = {name} < {count_}")
        elements.masks["group" if one.whole else "element"] = f"live{suffix}"
    axes = tuple(range(len(one.shape)))
    if one.whole:
        elements.split(name, "group", axes[:-1])
        elements.split(elements.column, "column", axes[-1:])
    else:
        elements.split(name, "element", axes)
    return blocks


def _emit_op(elements: Elements, op: RowOp, context: Context) -> None:
    elements.add(f"# {op.op}: {_shape(op.outputs[0])}")
    if op.op in _WHOLE:
        _WHOLE[op.op](elements, op, context)
    else:
        _MOVES.get(op.op, emit_pointwise)(elements, op)


def _shape(view: View) -> str:
    return f"[{', '.join(view.domain or '1' if axis.size is None else str(axis.size) for axis in view.axes)}]"


def _warps(one: Pass, *, split: bool) -> int:
    groups, columns = tile_of(one, split=split)
    return min(max(groups * columns // (_PER_WARP // 2 if split else _PER_WARP), 1), 16)
