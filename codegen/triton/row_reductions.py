"""Operations on whole rows of the last axis: norms, reductions, scans, the largest elements, cache writes."""

from typing import Literal

from llmc.codegen.regions import RowOp
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_cache import store_cached
from llmc.codegen.triton.row_passes import result_strides
from llmc.codegen.triton.row_values import Elements

BOTH = frozenset({"group", "column"})
_EMPTY = {"amax": {"f32": 'float("-inf")', "i64": "-0x8000000000000000"},
          "amin": {"f32": 'float("inf")', "i64": "0x7FFFFFFFFFFFFFFF"}}  # fmt: skip
"""What elements that are none are taken for."""
_FUNCTIONS = {"amax": "max", "amin": "min", "sum": "sum", "mean": "sum"}


def emit_reduction(elements: Elements, op: RowOp, context: Context) -> None:
    """sum, mean, amax, amin: one element for each row."""
    x = elements.operand(op, 0)
    dtype = "i64" if x.dtype == "u8" else x.dtype
    name = f"{x.name}.to(tl.int64)" if x.dtype == "u8" else x.name
    whole = _filled(elements, name, _EMPTY.get(op.op, {}).get(dtype, "0"))
    if op.op in _EMPTY and dtype == "f32":
        text = f"{elements.kernel.call('rows', op.op)}({whole})"
    else:
        text = (
            f"tl.{'max' if op.op == 'amax' else 'min' if op.op == 'amin' else 'sum'}({whole}, axis=1, keep_dims=True)"
        )
    if op.op == "mean":
        text += f" / {op.attrs['size']}"
    kind = op.outputs[0].buffer.dtype
    if kind == "u8":
        text = f"{text} != 0"
    elements.keep(op, elements.assign(text, kind, frozenset({"group"})))


def emit_scan(elements: Elements, op: RowOp, context: Context) -> None:
    """softmax, log_softmax, cumsum."""
    x = elements.operand(op, 0)
    kind = op.outputs[0].buffer.dtype
    if op.op == "cumsum":
        name = f"{x.name}.to(tl.int64)" if x.dtype == "u8" else x.name
        text = f"tl.cumsum({_filled(elements, name, '0')}, axis=1)"
    else:
        whole = _filled(elements, x.name, 'float("-inf")')
        text = f"{elements.kernel.call('rows', op.op)}({whole})"
    elements.keep(op, elements.assign(text, kind, BOTH))


def emit_norm(elements: Elements, op: RowOp, context: Context) -> None:
    """rms_norm, layer_norm."""
    x = elements.operand(op, 0)
    size = elements.one.shape[-1]
    whole = _filled(elements, x.name, "0.0")
    function = elements.kernel.call("rows", "normalised" if op.op == "rms_norm" else "standardised")
    live = "" if op.op == "rms_norm" else f", {elements.mask(frozenset({'column'})) or 'True'}"
    text = f"{function}({whole}{live}, {size}, {op.attrs['eps']!r})"
    operands = [elements.operand(op, place) if value is not None else None for place, value in enumerate(op.inputs)]
    weight, bias = operands[1], operands[2] if len(operands) > 2 else None
    if weight is not None:
        offset = op.attrs.get("offset")
        text += f" * ({offset!r} + {weight.name})" if offset else f" * {weight.name}"
    if bias is not None:
        text += f" + {bias.name}"
    elements.keep(op, elements.assign(text, "f32", BOTH))


def emit_topk(elements: Elements, op: RowOp, context: Context) -> None:
    """The k largest elements of each row, in descending order, and where they are."""
    values, indices = op.outputs
    assert values.axes == indices.axes, "values and indices lie alike"
    x = elements.operand(op, 0)
    call, live = elements.kernel.call, elements.mask(frozenset({"column"})) or "True"
    ranks = elements.assign(f"{call('rows', 'ranks')}({_broadcast(elements, x.name)}, {live})", "i64", BOTH)
    terms, _ = elements.at(result_strides(op))
    keep = elements.mask(frozenset({"group"}))
    places = [" + ".join([elements.base(view, role), *(terms or [elements.group])]) for view, role in
              ((values, "values"), (indices, "chosen"))]  # fmt: skip
    function = call("rows", "store_largest")
    elements.add(
        f"{function}({ranks.name}, {places[0]}, {places[1]}, {values.axes[-1].stride}, {keep or 'True'},"
        f" {op.attrs['k']})"
    )


def emit_write(elements: Elements, op: RowOp, context: Context) -> None:
    """Keys or values to the cache."""
    layer = op.attrs["layer"]
    assert isinstance(layer, int), "a layer is a number"
    x = elements.operand(op, 0)
    slot = elements.assign(f"tl.load({elements.kernel.step('slots')} + {elements.row})", "i64", frozenset())
    heads = [run.name for run in elements.runs if run.axis == "group"]
    role: Literal["k", "v"] = "k" if op.op == "write_k" else "v"
    lines = len(elements.kernel.lines)
    store_cached(
        elements.kernel, context, layer, role, slot=slot.name, head=heads[0] if heads else elements.group,
        row=elements.row, column=elements.column, value=_broadcast(elements, x.name),
        mask=elements.mask(BOTH) or "True",
    )  # fmt: skip
    elements.kernel.lines[lines:] = [elements.pad + line for line in elements.kernel.lines[lines:]]


def _filled(elements: Elements, name: str, empty: str) -> str:
    """A register with all the elements of the tile, those beyond the rows' ends replaced."""
    mask = elements.mask(frozenset({"column"}))
    whole = _broadcast(elements, name)
    return f"tl.where({mask}, {whole}, {empty})" if mask else whole


def _broadcast(elements: Elements, name: str) -> str:
    axes = next((one.axes for one in elements.registers.values() if one.name == name), frozenset[str]())
    full = BOTH if elements.tile[0] > 1 else frozenset({"column"})
    return name if full <= axes else f"tl.broadcast_to({name}, {list(elements.tile)})"


__all__ = ["emit_norm", "emit_reduction", "emit_scan", "emit_topk", "emit_write"]
