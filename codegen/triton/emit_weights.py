"""Single elements of packed weights in kernels that read a row here and there, such as a token's of a table."""

from llmc.codegen.triton.kernel import KernelText
from llmc.codegen.triton.linear_formats import FORMS, Form, padded_rows, row_stride, strip_bytes
from llmc.ir.packed_layout import GROUP, TILE


def load_weight(
    kernel: KernelText, weights: tuple[str, ...], format: str, rows: int, columns: int, row: str, column: str,
    mask: str = "",
) -> str:  # fmt: skip
    """An expression for the fp32 values of elements of a packed weight of `rows` times `columns`.

    row (int64) and column (int32) are expressions that broadcast against each other; mask says which of the elements
    there are, "" is all.
    """
    form = FORMS[format]
    parts = dict(zip(form.parts, weights, strict=True))
    where = f", mask={mask}, other=0" if mask else ""
    if not form.strips:
        data = kernel.weight(parts["data"], "weight", form.element)
        text = f"tl.load({data} + ({row}) * {row_stride(form, columns)} + {column}{where})"
        if form.name != "fp8":
            return f"{text}.to(tl.float32)"
        scales = kernel.weight(parts["scales"], "scales", "*fp32")
        number = f"{kernel.call('plain_weights', 'fp8_as_numbers')}({text}).to(tl.float32)"
        return f"{number} * tl.load({scales} + ({row}) + 0 * ({column}){where})"
    return _grouped(kernel, form, parts, rows, columns, f"({row})", f"({column})", where)


def _grouped(
    kernel: KernelText, form: Form, parts: dict[str, str], rows: int, columns: int, row: str, column: str, where: str
) -> str:
    types = _TYPES | ({"quants": form.element} if form.bits == 6 else {})
    names = {part: kernel.weight(parts[part], f"row_{part}", types[part]) for part in form.parts}
    strip = f"{row} // {TILE} * {strip_bytes(form, columns)}"
    group = f"({column} // {form.group})"
    at = f"({group} // {form.groups} * {padded_rows(rows)} + {row}) * {form.groups} + {group} % {form.groups}"
    scale = f"tl.load({names['scales']} + {at}{where}).to(tl.float32)"
    if form.name == "int8":
        byte = f"{strip} + {column} // {GROUP} * {GROUP * TILE} + {row} % {TILE} * {GROUP} + {column} % {GROUP}"
        return f"(tl.load({names['quants']} + {byte}{where}).to(tl.float32) - 128.0) * {scale}"
    if form.bits == 6:
        return _six(names["quants"], strip, row, column, where) + f" * {scale}"
    unit = form.unit_bytes
    half = form.group // 2
    byte = f"{strip} + {column} // {form.unit} * {unit * TILE} + {row} % {TILE} * {unit}"
    byte += f" + {column} % {half} * 2 + {column} % {form.group} // {half}"
    level = f"((tl.load({names['quants']} + {byte}{where}).to(tl.int32) >> ({group} % 2 * 4)) & 15).to(tl.float32)"
    if "mins" in names:
        return f"({level} * {scale} + tl.load({names['mins']} + {at}{where}).to(tl.float32))"
    zero = f"tl.load({names['zeros']} + {at}{where}).to(tl.float32)"
    return f"({level} - {zero} * 0.125) * {scale}"


def _six(quants: str, strip: str, row: str, column: str, where: str) -> str:
    """A level less 32: the first six parts of a unit have whole levels in a word, the others lie in two words."""
    part, places = f"({column} % 128 // 16)", 16 * TILE
    start = f"{quants} + ({strip}) // 2 + {column} // 128 * {3 * places} + {row} % {TILE} * 16 + {column} % 16"
    plane = f"tl.where({part} < 6, {part} // 2, {part} % 2 * 2)"
    word = f"tl.load({start} + {plane} * {places}{where}).to(tl.int32)"
    top = f"tl.load({start} + {places}{where}).to(tl.int32)"
    low = f"tl.where({part} < 6, ({word} >> ({part} % 2 * 6)) & 63, ({word} >> 12) & 15)"
    high = f"tl.where({part} < 6, 0, (({top} >> (12 + {part} % 2 * 2)) & 3) * 16)"
    return f"({low} + {high} - 32).to(tl.float32)"


_TYPES = {"quants": "*u8", "scales": "*fp16", "mins": "*fp16", "zeros": "*u8"}
