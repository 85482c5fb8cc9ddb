"""Row operations as C++: plain loops over the elements of one row, which the compiler vectorises."""

from collections.abc import Callable, Sequence
from functools import partial

from llmc.codegen.cpp.function import FORMATS, TYPES, Function
from llmc.codegen.layout import Axis, Scalar, Value, View
from llmc.codegen.regions import RowOp

EXPRESSIONS = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "rsub": "{1} - {0}",
    "pow": "std::pow({0}, {1})", "maximum": "std::max({0}, {1})", "minimum": "std::min({0}, {1})",
    "remainder": "scalar::remainder({0}, {1})", "floor_divide": "std::floor({0} / {1})",
    "neg": "-{0}", "abs": "std::abs({0})", "exp": "std::exp({0})", "log": "std::log({0})", "sqrt": "std::sqrt({0})",
    "rsqrt": "1.0f / std::sqrt({0})", "cos": "std::cos({0})", "sin": "std::sin({0})", "tanh": "std::tanh({0})",
    "sigmoid": "scalar::sigmoid({0})", "relu": "std::max({0}, 0.0f)", "silu": "scalar::silu({0})",
    "gelu": "scalar::gelu({0})", "gelu_tanh": "scalar::gelu_tanh({0})", "quick_gelu": "scalar::quick_gelu({0})",
    "relu2": "scalar::relu2({0})", "erf": "std::erf({0})", "floor": "std::floor({0})",
    "reciprocal": "1.0f / {0}", "softplus": "scalar::softplus({0})", "square": "{0} * {0}",
    "where": "{0} ? {1} : {2}", "eq": "{0} == {1}", "ne": "{0} != {1}", "lt": "{0} < {1}", "le": "{0} <= {1}",
    "gt": "{0} > {1}", "ge": "{0} >= {1}", "and": "{0} & {1}", "or": "{0} | {1}", "not": "!{0}", "copy": "{0}",
}  # fmt: skip
"""C++ of one element of each pointwise operation."""

_COMPARE = {"eq", "ne", "lt", "le", "gt", "ge"}


def emit_row_op(function: Function, op: RowOp, row: str) -> None:
    """Add the loops of one operation on row `row`."""
    emitter = _SPECIAL.get(op.op, _pointwise)
    function.add(f"// {op.op}: {_shape(op.outputs[0])}", "{")
    emitter(function, op, row)
    function.add("}")


def literal(value: Scalar) -> str:
    """A number in C++."""
    if isinstance(value.value, bool):
        return "1" if value.value else "0"
    if value.dtype == "i64":
        return f"int64_t({value.value})"
    number = float(value.value)
    if number != number:
        return "std::numeric_limits<float>::quiet_NaN()"
    if number in (float("inf"), float("-inf")):
        return ("-" if number < 0 else "") + "std::numeric_limits<float>::infinity()"
    return f"{number!r}f"


def _shape(view: View) -> str:
    return f"[{', '.join(view.domain or '1' if axis.size is None else str(axis.size) for axis in view.axes)}]"


def _declare(function: Function, name: str, value: Value | None, row: str, *, written: bool = False) -> None:
    if isinstance(value, View):
        const = "" if written else "const "
        kind = TYPES[value.buffer.dtype]
        function.add(f"  {const}{kind}* __restrict {name} = {function.base(value, row, written=written)};")


def _index(axes: Sequence[Axis], names: Sequence[str]) -> str:
    terms = [
        name if axis.stride == 1 else f"{name} * {axis.stride}"
        for axis, name in zip(axes, names, strict=True)
        if axis.size is not None and axis.size != 1 and axis.stride and name
    ]
    return " + ".join(terms) or "0"


def _element(value: Value, name: str, names: Sequence[str]) -> str:
    """One element of an operand, broadcast against axes called `names` (empty at the row axis)."""
    if isinstance(value, Scalar):
        return literal(value)
    aligned = names[len(names) - len(value.axes) :] if len(names) >= len(value.axes) else names
    return _stored(value, name, _index(value.axes[len(value.axes) - len(aligned) :], aligned))


def _stored(view: View, name: str, index: str) -> str:
    """The element of a buffer at an offset, as C++ computes with it."""
    text = f"{name}[{index}]"
    return f"to_float({text})" if view.buffer.dtype in ("f16", "bf16") else text


def _loops(function: Function, axes: Sequence[Axis], body: Callable[[list[str]], list[str]]) -> None:
    names: list[str] = []
    depth = 1
    inner = max((place for place, axis in enumerate(axes) if axis.size not in (None, 1)), default=-1)
    for place, axis in enumerate(axes):
        if axis.size is None or axis.size == 1:
            names.append("")
            continue
        names.append(f"i{place}")
        pad = "  " * depth
        if place == inner:
            function.add(f'{pad}_Pragma("GCC ivdep")')
        function.add(f"{pad}for (int64_t i{place} = 0; i{place} < {axis.size}; ++i{place}) {{")
        depth += 1
    function.add(*("  " * depth + line for line in body(names)))
    for level in range(depth - 1, 0, -1):
        function.add("  " * level + "}")


def _pointwise(function: Function, op: RowOp, row: str) -> None:
    output = op.outputs[0]
    kind = output.buffer.dtype
    for place, value in enumerate(op.inputs):
        _declare(function, f"a{place}", value, row)
    _declare(function, "y", output, row, written=True)

    def body(names: list[str]) -> list[str]:
        operands = [
            _operand(op, value, place, names, kind) for place, value in enumerate(op.inputs) if value is not None
        ]
        if "alpha" in op.attrs:
            operands[1] = f"{literal(Scalar(op.attrs['alpha'], 'f32'))} * {operands[1]}"  # type: ignore[arg-type]
        if op.op == "clamp":
            text = operands[0]
            if op.attrs.get("low") is not None:
                text = f"std::max({text}, {literal(Scalar(op.attrs['low'], kind))})"  # type: ignore[arg-type]
            if op.attrs.get("high") is not None:
                text = f"std::min({text}, {literal(Scalar(op.attrs['high'], kind))})"  # type: ignore[arg-type]
        elif op.op == "gated_act":
            text = f"({EXPRESSIONS[str(op.attrs['act'])].format(operands[0])}) * {operands[1]}"
        else:
            text = EXPRESSIONS[op.op].format(*operands)
        return [f"y[{_index(output.axes, names)}] = {TYPES[kind]}({text});"]

    _loops(function, output.axes, body)


def _operand(op: RowOp, value: Value, place: int, names: Sequence[str], kind: str) -> str:
    text = _element(value, f"a{place}", names)
    stored = value.dtype if isinstance(value, Scalar) else value.buffer.dtype
    boolean = op.op in ("and", "or", "not") or (op.op == "where" and place == 0)
    if op.op in _COMPARE:
        floats = any(
            (v.dtype if isinstance(v, Scalar) else v.buffer.dtype) not in ("i64", "u8") for v in op.inputs if v
        )
        return f"float({text})" if floats and stored in ("i64", "u8") else text
    return f"float({text})" if kind == "f32" and stored in ("i64", "u8") and not boolean else f"({text})"


def _copy_flat(function: Function, op: RowOp, row: str) -> None:
    source, output = op.inputs[0], op.outputs[0]
    assert isinstance(source, View), "a reshape has a tensor"
    _declare(function, "a0", source, row)
    _declare(function, "y", output, row, written=True)
    function.add("  int64_t at = 0;")
    _loops(function, source.axes, lambda names: [f"y[at++] = {_element(source, 'a0', names)};"])


def _outer(function: Function, op: RowOp, row: str, body: Callable[[str, str], list[str]]) -> None:
    """Loops over all axes but the last; `body` gets the offsets of input and output at those axes."""
    source, output = op.inputs[0], op.outputs[0]
    assert isinstance(source, View), "it works on a tensor"
    _declare(function, "a0", source, row)
    _declare(function, "y", output, row, written=True)
    outer = source.axes[:-1]

    def inner(names: list[str]) -> list[str]:
        return body(_index(outer, names), _index(output.axes[: len(outer)], names))

    _loops(function, outer, inner)


def _outer_index(view: View, source: View) -> str:
    """The offset of the last axis of an operand that is broadcast against a source, in loops over the source."""
    shift = len(source.axes) - len(view.axes)
    return _index(view.axes[:-1], [f"i{shift + place}" for place in range(len(view.axes) - 1)])


def _reduction(function: Function, op: RowOp, row: str) -> None:
    source = op.inputs[0]
    assert isinstance(source, View), "it works on a tensor"
    size, step = op.attrs["size"], source.axes[-1].stride
    keeps = op.op in ("softmax", "log_softmax", "cumsum")
    out_step = op.outputs[0].axes[-1].stride if keeps else 0
    tail = f", y + {{1}}, {out_step}" if keeps else ""
    call = f"rows::{op.op}(a0 + {{0}}, {size}, {step}{tail})"

    def body(read: str, write: str) -> list[str]:
        text = call.format(read, write)
        return [f"{text};" if keeps else f"y[{write}] = {text};"]

    _outer(function, op, row, body)


def _norm(function: Function, op: RowOp, row: str) -> None:
    source = op.inputs[0]
    assert isinstance(source, View), "a norm has a tensor"
    size, step = source.axes[-1].size, source.axes[-1].stride
    for name, value in zip(("w", "b"), op.inputs[1:], strict=False):
        _declare(function, name, value, row)

    def body(read: str, write: str) -> list[str]:
        weights = []
        for name, value in zip(("w", "b"), op.inputs[1:], strict=False):
            if not isinstance(value, View):
                weights.append("(const float*)nullptr")
                continue
            weights.append(f"{name} + {_outer_index(value, source)}")
        if op.op == "rms_norm":
            call = f"{weights[0]}, {op.attrs['eps']!r}f, {op.attrs['offset']!r}f"
        else:
            call = f"{weights[0]}, {weights[1]}, {op.attrs['eps']!r}f"
        return [f"{op.op}_row(a0 + {read}, {step}, {size}, {call}, y + {write});"]

    _outer(function, op, row, body)


def _rope(function: Function, op: RowOp, row: str) -> None:
    source, cos, sin = op.inputs
    assert isinstance(source, View) and isinstance(cos, View) and isinstance(sin, View), "rope has three tensors"
    _declare(function, "cos", cos, row)
    _declare(function, "sin", sin, row)
    size, rotated = source.axes[-1].size, cos.axes[-1].size
    steps = f"{source.axes[-1].stride}, {cos.axes[-1].stride}, {sin.axes[-1].stride}"

    def body(read: str, write: str) -> list[str]:
        kind = "true" if op.attrs["interleaved"] else "false"
        turn = f"cos + {_outer_index(cos, source)}, sin + {_outer_index(sin, source)}"
        return [f"rope_row<{kind}>(a0 + {read}, {turn}, {steps}, {size}, {rotated}, y + {write});"]

    _outer(function, op, row, body)


def _picks(function: Function, op: RowOp, row: str, pick: Callable[[View, View, list[str]], str]) -> None:
    """Each element of the output is one of the first operand's: `pick` spells the offset, by indices in the second."""
    source, index = op.inputs
    assert isinstance(source, View) and isinstance(index, View), f"{op.op} has a source and indices"
    output = op.outputs[0]
    _declare(function, "a0", source, row)
    _declare(function, "a1", index, row)
    _declare(function, "y", output, row, written=True)

    def body(names: list[str]) -> list[str]:
        return [f"y[{_index(output.axes, names)}] = {_stored(source, 'a0', pick(source, index, names))};"]

    _loops(function, output.axes, body)


def _wrapped(index: str, axis: Axis) -> str:
    """The offset along an axis of an index that may count from the end."""
    return f"scalar::wrapped({index}, {axis.size}) * {axis.stride}"


def _gather_rows(source: View, index: View, names: list[str]) -> str:
    """Whole rows of a table."""
    outer = len(names) - (len(source.axes) - 1)
    return (
        f"{_wrapped(_element(index, 'a1', names[:outer]), source.axes[0])} + {_index(source.axes[1:], names[outer:])}"
    )


def _gather_table(source: View, index: View, names: list[str]) -> str:
    """Of each column of a table the element in a row of its own."""
    return f"{_wrapped(_element(index, 'a1', names), source.axes[0])} + {_index(source.axes[1:], names[1:])}"


def _gather_last(source: View, index: View, names: list[str]) -> str:
    """Elements along the last axis."""
    last = f"{_element(index, 'a1', names)} * {source.axes[-1].stride}"
    return f"{_index(source.axes[:-1], names[:-1])} + {last}"


def _scatter_last(function: Function, op: RowOp, row: str) -> None:
    source, index, value = op.inputs
    assert source is not None and isinstance(index, View) and value is not None, "a scatter has three operands"
    output = op.outputs[0]
    for name, operand in (("a0", source), ("a1", index), ("a2", value)):
        _declare(function, name, operand, row)
    _declare(function, "y", output, row, written=True)
    kind = TYPES[output.buffer.dtype]
    _loops(
        function,
        output.axes,
        lambda names: [f"y[{_index(output.axes, names)}] = {kind}({_element(source, 'a0', names)});"],
    )

    def body(names: list[str]) -> list[str]:
        start = _index(output.axes[:-1], names[:-1])
        at = f"{start} + {_element(index, 'a1', names)} * {output.axes[-1].stride}"
        return [f"y[{at}] = {kind}({_element(value, 'a2', names)});"]

    _loops(function, index.axes, body)


def _select_columns(function: Function, op: RowOp, row: str) -> None:
    """Elements along one axis, the same of each row."""
    axis = op.attrs["axis"]
    assert isinstance(axis, int), "an axis is a number"

    def pick(source: View, index: View, names: list[str]) -> str:
        rest = _index(source.axes[:axis] + source.axes[axis + 1 :], names[:axis] + names[axis + 1 :])
        return f"{rest} + {_wrapped(f'a1[{names[axis] or 0}]', source.axes[axis])}"

    _picks(function, op, row, pick)


def _repeat_last(function: Function, op: RowOp, row: str) -> None:
    source, output = op.inputs[0], op.outputs[0]
    assert isinstance(source, View), "it repeats a tensor"
    _declare(function, "a0", source, row)
    _declare(function, "y", output, row, written=True)

    def body(names: list[str]) -> list[str]:
        place = f"{names[-1] or '0'} / {op.attrs['repeats']} * {source.axes[-1].stride}"
        at = f"{_index(source.axes[:-1], names[:-1])} + {place}"
        return [f"y[{_index(output.axes, names)}] = a0[{at}];"]

    _loops(function, output.axes, body)


def _topk(function: Function, op: RowOp, row: str) -> None:
    source = op.inputs[0]
    assert isinstance(source, View), "it chooses among the elements of a tensor"
    values, indices = op.outputs
    _declare(function, "index", indices, row, written=True)
    size, step = source.axes[-1].size, source.axes[-1].stride

    def body(read: str, write: str) -> list[str]:
        return [f"topk_row(a0 + {read}, {step}, {size}, {op.attrs['k']}, y + {write}, index + {write});"]

    assert values.axes == indices.axes, "values and indices lie alike"
    _outer(function, op, row, body)


def _gather_packed(function: Function, op: RowOp, row: str) -> None:
    index, output = op.inputs[0], op.outputs[0]
    assert isinstance(index, View) and len(output.fixed) == 1, "one token gives one row"
    function.argument("Weights table", f"weights({', '.join(map(str, op.attrs['weights']))})")  # type: ignore[call-overload]
    _declare(function, "a0", index, row)
    _declare(function, "y", output, row, written=True)
    k = op.attrs["k"]
    function.add(f"  gather_row<{FORMATS[str(op.attrs['format'])]}, {k}>(table, a0[0], y);")


def _write_cache(function: Function, op: RowOp, row: str) -> None:
    source = op.inputs[0]
    assert isinstance(source, View) and len(source.axes) == 3, "keys and values are [T, heads, size]"
    function.argument("Cache<Element> cache", f"cache({op.attrs['layer']})")
    _declare(function, "a0", source, row)
    heads, size = source.axes[1], source.axes[2]
    name = "key" if op.op == "write_k" else "value"
    gather = f"for (int i = 0; i < {size.size}; ++i) part[i] = a0[h * {heads.stride} + i * {size.stride}];"
    function.add(
        f"  alignas(64) float part[{-(-(size.size or 1) // 16) * 16}];",
        f"  for (int h = 0; h < {heads.size}; ++h) {{ {gather} write_{name}<Element, {size.size}>"
        f"(cache, step.slots[{row}], h, part); }}",
    )


_SPECIAL: dict[str, Callable[[Function, RowOp, str], None]] = {
    "copy_flat": _copy_flat, "softmax": _reduction, "log_softmax": _reduction, "sum": _reduction, "mean": _reduction,
    "amax": _reduction, "amin": _reduction, "cumsum": _reduction, "rms_norm": _norm, "layer_norm": _norm,
    "rope": _rope, "gather_rows": partial(_picks, pick=_gather_rows),
    "gather_table": partial(_picks, pick=_gather_table), "gather_last": partial(_picks, pick=_gather_last),
    "scatter_last": _scatter_last, "select_columns": _select_columns, "repeat_last": _repeat_last, "topk": _topk,
    "gather_packed": _gather_packed, "write_k": _write_cache, "write_v": _write_cache,
}  # fmt: skip
