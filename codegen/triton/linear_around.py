"""What needs kernels of its own around the products of a linear: rows made ready, and heads finished."""

from collections.abc import Mapping

from llmc.codegen.layout import ROW, Axis, View
from llmc.codegen.regions import HeadPart, Linear
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, KernelText, rows_of
from llmc.codegen.triton.linear_epilogue import Sums, put_head
from llmc.codegen.triton.linear_formats import Form
from llmc.codegen.triton.linear_gemv import wait
from llmc.codegen.triton.linear_rows import runs
from llmc.codegen.triton.linear_source import At, Source, load
from llmc.runtime.cuda.plan import ALWAYS, ONE, Extent, Number, When

STORED: Mapping[str, Number] = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
BLOCK = 1024
"""Columns that the kernel of rows works on at once."""


def emit_ready(
    region: Linear, context: Context, form: Form, when: When, *, into: View | None = None
) -> tuple[View, Draft]:
    """Rows as matrix units multiply them, filled up with zeros to whole units, and the launch that makes them.

    into: where another launch of this function puts them; None for a new place.
    """
    width = form.units(region.k) * form.unit
    buffer = into.buffer if into else context.scratch("ready", region.domain, width, STORED[form.multiplied])
    kernel = KernelText("rows", warps=4, stages=1, pdl=context.pdl)
    kernel.comment = f"rows of {region.k} columns{'' if isinstance(region.source, View) else f', {region.source.op}'}"
    kernel.add("t = tl.program_id(0).to(tl.int64)")
    wait(kernel)
    source = Source(region.source, region.k, half=True)  # what is stored has its scale
    if source.statistics:
        source.measure(kernel, "t", "", "", "", 0)
    kernel.add(f"for start in range(0, {width}, {BLOCK}):", f"    column = start + tl.arange(0, {BLOCK})")
    known = f"(column < {region.k})" if region.k % BLOCK else ""
    source.read(kernel, "x", At("column", "t", known, known), "", "    ")
    if width != region.k and source.op:
        kernel.add(f"    x = tl.where({known}, x, 0.0)")
    pointer = kernel.pointer(buffer, "ready")
    mask = f", mask=column < {width}" if width % BLOCK else ""
    rounding = "" if form.multiplied == "float32" else f".to(tl.{form.multiplied})"
    kernel.add(f"    tl.store({pointer} + t * {width} + column, x{rounding}{mask})")
    symbol = rows_of(region.domain)
    return View(buffer, (ROW, Axis(width, 1))), Draft(kernel, (Extent(symbol), ONE, ONE), when)


def raw_sums(region: Linear, context: Context) -> View:
    """Where the sums of a linear wait for `emit_heads`."""
    buffer = context.scratch("sums", region.domain, region.n, "f32")
    return View(buffer, (ROW, Axis(region.n, 1)))


def emit_heads(region: Linear, context: Context, raw: View) -> Draft:
    """The launch that finishes heads: norm, RoPE, and where they are stored. A program has one head of one row."""
    kernel = KernelText("heads", warps=1, stages=1, pdl=context.pdl)
    kernel.comment = f"heads of {region.head_size}: {', '.join(part.role for part in region.parts)}"
    size = region.head_size
    kernel.add(
        "t = tl.program_id(0).to(tl.int64)", "unit = tl.program_id(1)",
        f"element = tl.arange(0, {_power(size)})[None, :]",
    )  # fmt: skip
    wait(kernel)
    inside = f"(element < {size})" if _power(size) != size else ""
    period, found = runs(region.head_of)
    whole = period == len(region.head_of)
    if not whole:
        kernel.add(f"place = unit % {period}")
    place = "unit" if whole else "place"
    for run in found:
        conditions = [f"{place} >= {run.first}"] if run.first else []
        conditions += [f"{place} < {run.last}"] if run.last < period else []
        mark = len(kernel.lines)
        later = f" + unit // {period} * {run.step}" if run.step else ""
        kernel.add(f"head = {place} + {run.head - run.first}{later}")
        _head(kernel, context, region, region.parts[run.part], raw, inside)
        if conditions:
            kernel.lines[mark:] = [
                f"if {' and '.join(conditions)}:", *("    " + line for line in kernel.lines[mark:])
            ]  # fmt: skip
    symbol = rows_of(region.domain)
    return Draft(kernel, (Extent(symbol), Extent(times=len(region.head_of)), ONE), ALWAYS)


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _head(kernel: KernelText, context: Context, region: Linear, part: HeadPart, raw: View, inside: str) -> None:
    size, turn = region.head_size, part.rotation
    other = ""
    if turn is not None:
        half = turn.size // 2
        other = "other"
        if turn.interleaved:
            kernel.add("other = element ^ 1")
        else:
            kernel.add(f"other = tl.where(element < {half}, element + {half}, element - {half})")
        if turn.size < size:
            kernel.add(f"other = tl.where(element < {turn.size}, other, element)")
    if part.norm is not None:
        _load(kernel, region, raw, "own", "element", inside)
        if part.norm.op == "layer_norm":
            kernel.add(f"mean = tl.sum(own) / {size}")
            centred = f"tl.where({inside}, own - mean, 0.0)" if inside else "own - mean"
            kernel.add(f"scale = {centred}", f"scale = tl.rsqrt(tl.sum(scale * scale) / {size} + {part.norm.eps})")
        else:
            kernel.add(f"scale = tl.rsqrt(tl.sum(own * own) / {size} + {part.norm.eps})")
    for name, element in (("own", "element"), ("partner", other)):
        if element:
            _load(kernel, region, raw, name, element, inside)
            _normed(kernel, part, name, element, inside, size)
    if turn is not None:
        _turn(kernel, part, inside, size)
    sums = Sums(("own",), "element", "t", inside, inside)
    put_head(kernel, context, part, "own", sums, "head", "element", size)


def _load(kernel: KernelText, region: Linear, raw: View, name: str, element: str, inside: str) -> None:
    at = At(f"(unit * {region.head_size} + {element})", "t", inside, inside)
    kernel.add(f"{name} = {load(kernel, raw, 'sums', at, region.n)}")
    if region.bias is not None:
        kernel.add(f"{name} += {load(kernel, region.bias, 'bias', at, region.n)}")


def _normed(kernel: KernelText, part: HeadPart, name: str, element: str, inside: str, size: int) -> None:
    norm = part.norm
    if norm is None:
        return
    text = f"({name} - mean) * scale" if norm.op == "layer_norm" else f"{name} * scale"
    for view, role in ((norm.weight, "norm_weight"), (norm.bias, "norm_bias")):
        if view is None:
            continue
        column = element if view.elements == size else f"(head * {size} + {element})"
        operand = load(kernel, view, role, At(column, "t", inside, inside), view.elements)
        if role == "norm_weight":
            text += f" * ({operand} + {norm.offset!r})" if norm.offset else f" * {operand}"
        else:
            text += f" + {operand}"
    kernel.add(f"{name} = {text}")


def _turn(kernel: KernelText, part: HeadPart, inside: str, size: int) -> None:
    turn = part.rotation
    assert turn is not None, "heads that are turned have a rotation"
    rotated = f"(element < {turn.size})" if turn.size < size else ""
    mask = rotated or inside
    at = At("element", "t", mask, mask)
    cos, sin = (load(kernel, view, role, at, turn.size) for view, role in ((turn.cos, "cos"), (turn.sin, "sin")))
    first = "element % 2 == 0" if turn.interleaved else f"element < {turn.size // 2}"
    text = f"own * {cos} + tl.where({first}, -partner, partner) * {sin}"
    kernel.add(f"own = tl.where({rotated}, {text}, own)" if rotated else f"own = {text}")
