"""Linears as C++: one call of the `linear` template with what is fused before and after it as lambdas."""

from dataclasses import replace

from llmc.codegen.cpp.emit_rows import emit_row_op, literal
from llmc.codegen.cpp.function import FORMATS, Function
from llmc.codegen.layout import Buffer, Scalar, View
from llmc.codegen.regions import ChainStep, HeadPart, Linear, Norm, RowOp

_WIDEST = 4
"""Tiles in a unit: as many as hide the latency of a dot product; fewer where the units then divide evenly."""
_UNARY = {"gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh", "quick_gelu", "relu2", "square"}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def emit_linear(region: Linear) -> Function:
    """The function of one linear."""
    function = Function("linear")
    weights = ", ".join(region.weights)
    function.argument("Weights w", f"weights({weights})")
    function.argument("Crossover crossover", f"crossover({region.n}, {region.k}, {region.format})")
    function.argument("std::byte* shared", "shared()")
    count = "step.T" if region.domain == "T" else "step.R"
    function.add(f"// {'gated ' if region.gate else ''}{region.format} [{region.n}, {region.k}]")
    function.add(f"linear<{FORMATS[region.format]}, {region.k}, {_tiles(region)}>(")
    function.add(f"    team, {count}, {_units(region)}, w, crossover, shared,")
    _source(function, region)
    _tile_of(function, region)
    if region.parts:
        _heads(function, region)
    else:
        _chain(function, region)
    function.lines[-1] += ");"
    return function


def unit_tiles(tiles: int) -> int:
    """How many tiles of 16 rows make a unit, so that the units divide evenly over two threads, four and eight."""

    def waste(size: int) -> tuple[float, int]:
        units = _ceil(tiles, size)
        return (_ceil(units, 2) * 2 * size / tiles, abs(size - _WIDEST))

    return min((4, 3, 2, 1), key=waste) if tiles < 64 else _WIDEST


def _ceil(count: int, size: int) -> int:
    return (count + size - 1) // size


def _tiles(region: Linear) -> int:
    if region.parts:
        return region.head_size // 16
    if region.gate:
        return 2 * _half(region)
    return unit_tiles(_ceil(region.n, 16))


def _half(region: Linear) -> int:
    tiles = region.n // 32
    return max(size for size in (2, 1) if tiles % size == 0)


def _units(region: Linear) -> int:
    if region.parts:
        return region.n // region.head_size
    if region.gate:
        return region.n // 32 // _half(region)
    return _ceil(_ceil(region.n, 16), _tiles(region))


def _source(function: Function, region: Linear) -> None:
    local = Buffer(-1, "x", "", region.k, "f32", "arena")
    function.add("    [&](int64_t t, float* x) {")
    mark = len(function.lines)
    source = region.source
    if isinstance(source, View):
        if source.is_contiguous:
            function.add(f"std::memcpy(x, {function.base(source, 't')}, {region.k} * sizeof(float));")
        else:
            target = View(local, source.axes)
            function.local[local] = "x"
            emit_row_op(function, RowOp("copy_flat", "", (source,), (target,)), "t")
    else:
        output = source.outputs[0]
        local = replace(output.buffer, key=-1, name="x")
        function.local[local] = "x"
        emit_row_op(function, replace(source, outputs=(replace(output, buffer=local),)), "t")
    function.lines[mark:] = ["      " + line for line in function.lines[mark:]]
    function.add("    },")


def _tile_of(function: Function, region: Linear) -> None:
    tiles = _tiles(region)
    if region.gate:
        half, up = _half(region), region.n // 32
        text = f"u * {half} + (j < {half} ? j : {up - half} + j)"
    elif not region.parts and _ceil(region.n, 16) % tiles:
        text = f"std::min(u * {tiles} + j, {_ceil(region.n, 16) - 1})"
    else:
        text = f"u * {tiles} + j"
    function.add(f"    [](int u, int j) {{ return {text}; }},")


def _chain(function: Function, region: Linear) -> None:
    target = region.target
    assert target is not None, "a linear without heads has a target"
    width = _half(region) * 16 if region.gate else _tiles(region) * 16
    columns = region.n // 2 if region.gate else region.n
    tail = columns % 16 != 0
    partial = not region.gate and _ceil(region.n, 16) % _tiles(region) != 0
    count = f"std::min({columns} - n, 16)" if tail else ""
    function.add("    [&](int64_t t, int u, const float* y) {")
    function.add(f"      for (int i = 0; i < {width}; i += 16) {{")
    function.add(f"        const int n = u * {width} + i;")
    if partial:
        function.add(f"        if (n >= {columns}) break;")
    if region.gate:
        gate, up = "F32x16::load(y + i)", f"F32x16::load(y + {width} + i)"
        if region.bias is not None:
            bias = function.base(region.bias, "t")
            gate, up = f"({gate} + load_16({bias} + n))", f"({up} + load_16({bias} + {columns} + n))"
        function.add(f"        F32x16 v = {_activation(region.gate)}({gate}) * {up};")
    else:
        function.add("        F32x16 v = F32x16::load(y + i);")
        if region.bias is not None:
            function.add(f"        v = v + {_operand(function, region.bias, columns, count)};")
    for step in region.chain:
        function.add(f"        v = {_step(function, step, columns, count)};")
    put = f"v.store_n(out, {count});" if count else "v.storeu(out);"
    function.add(f"        float* out = {function.base(target, 't', written=True)} + n;", f"        {put}", "      }")
    function.add("    }")


def _activation(name: str) -> str:
    return "gelu_erf" if name == "gelu" else name


def _step(function: Function, step: ChainStep, columns: int, count: str) -> str:
    if step.op == "neg":
        return "F32x16::broadcast(0.0f) - v"
    if step.op in _UNARY:
        return f"{_activation(step.op)}(v)"
    assert step.operand is not None, f"{step.op} has two operands"
    other = _operand(function, step.operand, columns, count)
    left, right = (other, "v") if step.swapped else ("v", other)
    return f"{left} {_INFIX[step.op]} {right}"


def _operand(function: Function, value: View | Scalar, columns: int, count: str) -> str:
    if isinstance(value, Scalar):
        return f"F32x16::broadcast({literal(Scalar(float(value.value), 'f32'))})"
    base = function.base(value, "t")
    if value.elements == 1 and columns != 1:
        return f"F32x16::broadcast(to_float(*({base})))"
    step = value.axes[-1].stride
    if step != 1:
        return f"load_strided({base} + n * {step}, {step}, {count or 16})"
    return f"load_16({base} + n, {count})" if count else f"load_16({base} + n)"


def _heads(function: Function, region: Linear) -> None:
    size = region.head_size
    function.add("    [&](int64_t t, int u, const float* y) {")
    runs = _runs(region.head_of)
    function.add(f"      alignas(64) float head[{size}];")
    if region.bias is not None:
        function.add(f"      for (int i = 0; i < {size}; i += 16)")
        bias = function.base(region.bias, "t")
        function.add(f"        (F32x16::load(y + i) + load_16({bias} + u * {size} + i)).store(head + i);")
    else:
        function.add(f"      std::memcpy(head, y, {size} * sizeof(float));")
    if runs is None:
        parts = ", ".join(str(part) for part, _ in region.head_of)
        heads = ", ".join(str(head) for _, head in region.head_of)
        function.add(f"      static constexpr short kPart[] = {{{parts}}}, kHead[] = {{{heads}}};")
        function.add("      const int part = kPart[u], h = kHead[u];")
    for number, part in enumerate(region.parts):
        if runs is not None:
            first, last = runs[number]
            function.add(
                f"      if (u >= {first} && u < {last}) {{  // {part.role}", f"        const int h = u - {first};"
            )
        else:
            function.add(f"      if (part == {number}) {{  // {part.role}")
        _head(function, part, size)
        function.add("      }")
    function.add("    }")


def _runs(head_of: tuple[tuple[int, int], ...]) -> list[tuple[int, int]] | None:
    """First and last + 1 unit of each part, if each part's heads follow one another; else None."""
    runs: dict[int, list[int]] = {}
    for unit, (part, head) in enumerate(head_of):
        first = runs.setdefault(part, [unit, unit])
        if head != unit - first[0] or first[1] != unit:
            return None
        first[1] = unit + 1
    return [(runs[part][0], runs[part][1]) for part in sorted(runs)]


def _head(function: Function, part: HeadPart, size: int) -> None:
    if part.norm is not None:
        function.add(f"        {_norm(function, part.norm, size)}")
    if part.rotation is not None:
        turn = part.rotation
        kind = "true" if turn.interleaved else "false"
        cos, sin = function.base(turn.cos, "t"), function.base(turn.sin, "t")
        function.add(f"        rope_head<{kind}, {size}, {turn.size}>(head, {cos}, {sin});")
    if part.role in "kv":
        function.argument("Cache<Element> cache", f"cache({part.layer})")
        kind = "key" if part.role == "k" else "value"
        function.add(f"        write_{kind}<Element, {size}>(cache, step.slots[t], h, head);")
        return
    assert part.target is not None, "heads that are not cached are stored"
    out = function.base(part.target, "t", written=True)
    function.add(f"        std::memcpy({out} + h * {size}, head, {size} * sizeof(float));")


def _norm(function: Function, norm: Norm, size: int) -> str:
    weight = "(const float*)nullptr" if norm.weight is None else function.base(norm.weight, "t")
    if norm.weight is not None and norm.weight.elements != size:
        weight += f" + h * {size}"
    if norm.op == "rms_norm":
        return f"rms_norm_row(head, 1, {size}, {weight}, {norm.eps!r}f, {norm.offset!r}f, head);"
    bias = "(const float*)nullptr" if norm.bias is None else function.base(norm.bias, "t")
    return f"layer_norm_row(head, 1, {size}, {weight}, {bias}, {norm.eps!r}f, head);"


def shared_terms(regions: list[Linear]) -> tuple[list[str], list[str]]:
    """C++ expressions of what linears need: shared memory for each row, and scratch for each thread."""
    shared = dict.fromkeys(f"shared_bytes<{FORMATS[region.format]}, {region.k}>()" for region in regions)
    scratch = dict.fromkeys(
        f"scratch_bytes<{FORMATS[region.format]}, {region.k}, {_tiles(region)}>()" for region in regions
    )
    return list(shared), list(scratch)
