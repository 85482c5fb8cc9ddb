"""Operations on one element at a time, as Triton expressions."""

from llmc.codegen.layout import Scalar
from llmc.codegen.regions import RowOp
from llmc.codegen.triton.kernel import literal
from llmc.codegen.triton.row_values import Elements, Register

EXPRESSIONS = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "rsub": "{1} - {0}",
    "pow": "power({0}, {1})", "maximum": "maximum({0}, {1})", "minimum": "minimum({0}, {1})",
    "remainder": "remainder({0}, {1})", "floor_divide": "tl.floor(tl.div_rn({0}, {1}))",
    "neg": "-{0}", "abs": "tl.abs({0})", "exp": "tl.exp({0})", "log": "tl.log({0})", "sqrt": "tl.sqrt({0})",
    "rsqrt": "tl.rsqrt({0})", "cos": "tl.cos({0})", "sin": "tl.sin({0})", "tanh": "tanh({0})",
    "sigmoid": "sigmoid({0})", "relu": "relu({0})", "silu": "silu({0})", "gelu": "gelu({0})",
    "gelu_tanh": "gelu_tanh({0})", "quick_gelu": "quick_gelu({0})", "relu2": "relu2({0})", "erf": "tl.erf({0})",
    "floor": "tl.floor({0})", "reciprocal": "1.0 / {0}", "softplus": "softplus({0})", "square": "{0} * {0}",
    "where": "tl.where({0}, {1}, {2})", "eq": "{0} == {1}", "ne": "{0} != {1}", "lt": "{0} < {1}", "le": "{0} <= {1}",
    "gt": "{0} > {1}", "ge": "{0} >= {1}", "and": "{0} & {1}", "or": "{0} | {1}", "not": "~{0}", "copy": "{0}",
}  # fmt: skip
"""Of each pointwise operation; functions are those of the library's `numbers`, or of `tl`."""
_WHOLE_NUMBERS = {"remainder": "whole_remainder({0}, {1})", "floor_divide": "whole_divide({0}, {1})"}
"""Where integers need another form than floats."""
_POWERS = {2: "{0} * {0}", 3: "{0} * {0} * {0}", 0.5: "tl.sqrt({0})"}
"""Exponents that need no general power."""
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
_TYPES = {"f32": "tl.float32", "i64": "tl.int64", "u8": "tl.int1"}


def emit_pointwise(elements: Elements, op: RowOp) -> None:
    """Add a pointwise operation, or a gated activation."""
    kind = op.outputs[0].buffer.dtype
    operands = [elements.operand(op, place) for place, value in enumerate(op.inputs) if value is not None]
    texts = [_as_operand(op, register, place, operands) for place, register in enumerate(operands)]
    axes = frozenset[str]().union(*(register.axes for register in operands))
    made, text = _result(elements, op, texts, kind)
    if op.op == "copy" and isinstance(op.inputs[0], Scalar):
        made, text = kind, f"tl.full([], {text}, {'tl.uint8' if kind == 'u8' else _TYPES[kind]})"
    elif made != kind:
        text = text if text.isidentifier() else f"({text})"
        text = f"{text} != 0" if kind == "u8" else f"{text}.to({_TYPES[kind]})"
    known = op.op == "copy" and text == operands[0].name
    elements.keep(op, Register(text, kind, axes) if known else elements.assign(text, kind, axes))


def call(elements: Elements, text: str) -> str:
    """An expression, whose functions of `numbers` the kernel then imports."""
    name = text.partition("(")[0]
    if name.isidentifier() and "(" in text:
        elements.kernel.call("numbers", name)
    return text


def _result(elements: Elements, op: RowOp, texts: list[str], kind: str) -> tuple[str, str]:
    """The dtype that an expression has by itself, and the expression."""
    if "alpha" in op.attrs:
        scaled = 0 if op.op == "rsub" else 1
        texts[scaled] = f"{literal(Scalar(op.attrs['alpha'], 'f32'))} * {texts[scaled]}"  # type: ignore[arg-type]
    if op.op == "clamp":
        text = texts[0]
        for name, function in (("low", "maximum"), ("high", "minimum")):
            if op.attrs.get(name) is not None:
                bound = literal(Scalar(op.attrs[name], kind))  # type: ignore[arg-type]
                text = call(elements, f"{function}({text}, {bound})")
        return kind, text
    if op.op == "gated_act":
        return "f32", f"{call(elements, EXPRESSIONS[str(op.attrs['act'])].format(texts[0]))} * {texts[1]}"
    form = _WHOLE_NUMBERS.get(op.op) if kind == "i64" else None
    second = op.inputs[1] if len(op.inputs) > 1 else None
    if op.op == "pow" and isinstance(second, Scalar):
        form = _POWERS.get(second.value)
    text = call(elements, (form or EXPRESSIONS[op.op]).format(*texts))
    if op.op in COMPARISONS:
        return "u8", text
    if op.op == "copy":
        value = op.inputs[0]
        assert value is not None, "a copy has a source"
        stored = value.dtype if isinstance(value, Scalar) else value.buffer.dtype
        return ("f32" if stored in ("f16", "bf16") else stored), text
    # tl.where of two numbers has the type that fits them
    numbers = op.op == "where" and all(isinstance(value, Scalar) for value in op.inputs[1:])
    return ("" if numbers else "i64" if kind == "u8" and op.op not in ("and", "or", "not", "where") else kind), text


def _as_operand(op: RowOp, register: Register, place: int, operands: list[Register]) -> str:
    """A register or number as the operation takes it."""
    kind, name = op.outputs[0].buffer.dtype, register.name
    if isinstance(op.inputs[place], Scalar):  # a function that asks for the dtype must be given a tensor
        return f"tl.full([], {name}, {_TYPES[kind]})" if op.op in ("pow", "remainder") and kind == "f32" else name
    if (op.op in ("and", "or", "not") and kind == "u8") or (op.op == "where" and place == 0):
        return name if register.dtype == "u8" else f"({name} != 0)"
    if op.op in COMPARISONS:
        wanted = "f32" if any(other.dtype == "f32" for other in operands) else "i64"
    elif op.op == "copy":
        return name
    else:
        wanted = "i64" if kind == "u8" and op.op != "where" else kind
    return name if register.dtype == wanted else f"{name}.to({_TYPES[wanted]})"
