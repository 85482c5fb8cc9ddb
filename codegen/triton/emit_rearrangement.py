"""Kernels that lay packed weights out as `llmc.codegen.triton.linear_formats` says, once, before the first step."""

from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.codegen.triton.linear_formats import FORMS, Form, row_stride, strip_bytes
from llmc.codegen.triton.packed import PackedWeight
from llmc.ir.packed_layout import GROUP, TILE
from llmc.runtime.cuda.plan import ONE, Extent

COLUMNS = 64
"""Columns that a program moves, of one strip of 16 rows."""


def emit_rearrangement(weight: PackedWeight) -> list[tuple[str, int, Draft]]:
    """For each part of a weight that is not read as it is stored: its name, the bytes of the result and the launch."""
    form = FORMS[weight.format]
    found = []
    for part, name in zip(form.parts, weight.parts, strict=True):
        if part in ("data", "quants"):
            found.append((name, weight.rows * form.row_bytes(weight.columns), _weights(weight, form)))
        elif form.strips:
            size = 1 if part == "zeros" else 2
            found.append(
                (name, weight.rows * form.units(weight.columns) * form.groups * size, _groups(weight, form, part))
            )
    return found


def _kernel(weight: PackedWeight, what: str, type: str, programs: int, target: str = "") -> tuple[KernelText, Draft]:
    """type: of what is read, and of what is written but for another `target`."""
    kernel = KernelText("rearrange", warps=1, stages=1)
    kernel.comment = f"{weight.format} of {weight.columns} columns: {what} from tiles to rows"
    kernel.argument("source", "source", type)
    kernel.argument("target", "target", target or type)
    kernel.add("tile = tl.program_id(0).to(tl.int64)", f"r = tl.arange(0, {TILE})[:, None]")
    grid = (Extent(times=weight.rows // TILE), Extent(times=programs), ONE)
    return kernel, Draft(kernel, grid)


def _weights(weight: PackedWeight, form: Form) -> Draft:
    k = weight.columns
    bits = {"*fp32": "*i32", "*fp16": "*i16", "*bf16": "*i16"}.get(form.element, form.element)
    width = form.units(k) * form.unit
    if form.bits < 8:
        return _sixes(weight, form) if form.bits == 6 else _nibbles(weight, form)
    kernel, draft = _kernel(weight, "weights", bits, -(-width // COLUMNS))
    pair = {"bf16": 2, "fp8": 4, "int8": 4}.get(form.name, 1)
    kernel.add(f"c = tl.program_id(1) * {COLUMNS} + tl.arange(0, {COLUMNS})[None, :]")
    other = 128 if form.name == "int8" else 0
    mask = f", mask=c < {k}, other={other}" if k != width else ""
    kernel.add(
        f"value = tl.load(source + tile * {k * TILE} + c // {pair} * {TILE * pair} + r * {pair} + c % {pair}{mask})"
    )
    if form.strips:
        kernel.add(
            f"tl.store(target + tile * {strip_bytes(form, k)} + c // {GROUP} * {GROUP * TILE} + r * {GROUP}"
            f" + c % {GROUP}, value)"
        )
    else:
        kernel.add(f"tl.store(target + (tile * {TILE} + r) * {row_stride(form, k)} + c, value)")
    return draft


def _nibbles(weight: PackedWeight, form: Form) -> Draft:
    """Word i of a unit holds column i of its first group and of its second, and the same of their second halves."""
    groups, half = weight.columns // GROUP, form.group
    kernel, draft = _kernel(weight, "levels", "*u8", form.units(weight.columns))
    kernel.add(f"i = tl.arange(0, {half})[None, :]", f"place = i % 2 * {half // 2} + i // 2")
    for name, start in (("low", 0), ("high", half)):
        kernel.add(
            f"c = tl.program_id(1) * {form.unit} + {start} + place",
            f"at = tile * {groups * GROUP * TILE // 2} + c // 32 * 256 + c % 16 // 4 * 64 + r * 4 + c % 4",
            f"{name} = tl.load(source + at, mask=c < {groups * GROUP}, other=0).to(tl.int32)",
            f"{name} = ({name} >> (c % 32 // 16 * 4)) & 15",
        )
    unit = form.unit_bytes
    kernel.add(
        f"at = tile * {strip_bytes(form, weight.columns)} + tl.program_id(1) * {unit * TILE} + r * {unit} + i",
        "tl.store(target + at, (low | (high << 4)).to(tl.uint8))",
    )
    return draft


def _sixes(weight: PackedWeight, form: Form) -> Draft:
    """Three words i of a unit hold column i of each of its eight parts."""
    groups = weight.columns // GROUP
    kernel, draft = _kernel(weight, "levels", "*u8", form.units(weight.columns), "*i16")
    tile = 6 * TILE * 4
    kernel.add("i = tl.arange(0, 16)[None, :]")
    for number in range(form.unit // GROUP):
        kernel.add(
            f"group = tl.program_id(1) * {form.unit // GROUP} + {number}",
            f"at = tile * {groups * tile} + group * {tile} + r * 4 + i % 4",
        )
        for name, plane in (("low", "i // 4"), ("first", "4"), ("second", "5")):
            read = f"tl.load(source + at + {plane} * 64, mask=group < {groups}, other=0).to(tl.int32)"
            kernel.add(f"{name} = {read}")
        kernel.add(
            f"level_{2 * number} = (low & 15) | (((first >> (i // 4 * 2)) & 3) << 4)",
            f"level_{2 * number + 1} = (low >> 4) | (((second >> (i // 4 * 2)) & 3) << 4)",
        )
    words, unit = strip_bytes(form, weight.columns) // 2, form.unit_bytes * TILE // 2
    kernel.add(f"at = tile * {words} + tl.program_id(1) * {unit} + r * 16 + i")
    tops = ("(level_6 & 15) << 12", "((level_6 >> 4) << 12) | ((level_7 >> 4) << 14)", "(level_7 & 15) << 12")
    for number, top in enumerate(tops):
        word = f"level_{2 * number} | (level_{2 * number + 1} << 6) | {top}"
        kernel.add(f"tl.store(target + at + {number * 16 * TILE}, ({word}).to(tl.int16))")
    return draft


def _groups(weight: PackedWeight, form: Form, part: str) -> Draft:
    """One number for each group of each row: [tiles, groups, 16] to [units, rows, groups of a unit]."""
    stored, count = -(-weight.columns // form.group), form.groups
    kernel, draft = _kernel(weight, part, "*u8" if part == "zeros" else "*fp16", form.units(weight.columns))
    kernel.add(
        f"i = tl.arange(0, {count})[None, :]",
        f"group = tl.program_id(1) * {count} + i",
        f"value = tl.load(source + tile * {stored * TILE} + group * {TILE} + r, mask=group < {stored}, other=0)",
        f"at = (tl.program_id(1) * {weight.rows} + tile * {TILE} + r) * {count} + i",
        "tl.store(target + at, value)",
    )
    return draft
