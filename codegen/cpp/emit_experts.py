"""Mixtures of experts as C++: one call of the `moe` template."""

from llmc.codegen.cpp.function import FORMATS, TYPES, Function
from llmc.codegen.layout import View
from llmc.codegen.regions import Experts


def emit_experts(region: Experts) -> Function:
    """The function of one mixture of experts."""
    function = Function("experts")
    attrs = region.attrs
    size, width = region.source.elements, _number(attrs["width"])
    rows = 2 * width if attrs["gated"] else width
    experts = _number(attrs["experts"])
    up, down = str(attrs["up_format"]), str(attrs["down_format"])
    function.argument("Weights up", f"weights({', '.join(region.up)})")
    function.argument("Weights down", f"weights({', '.join(region.down)})")
    function.argument("Crossover up_crossover", f"crossover({rows}, {size}, {up})")
    function.argument("Crossover down_crossover", f"crossover({size}, {width}, {down})")
    function.argument("std::byte* shared", "shared()")
    biases = [_bias(function, view) for view in (region.up_bias, region.down_bias)]
    types = ", ".join(kind for kind, _ in biases)
    activation = "gelu_erf" if attrs["act"] == "gelu" else str(attrs["act"])
    limits = f"{{{float(str(attrs['limit']))!r}f, {float(str(attrs['up_offset']))!r}f}}"
    for view in (region.source, region.ids, region.gates):
        assert view.is_contiguous and not view.offset, "what experts read was stored as it is"
    function.add(
        f"// {experts} experts of [{rows}, {size}] {up} and [{size}, {width}] {down}",
        f"using Shape = {shape_of(region)};",
        f"const ExpertWeights<{types}> weights{{up, down, {biases[0][1]}, {biases[1][1]}}};",
        f"moe<Shape>(team, step.{region.domain}, weights, up_crossover, down_crossover, shared,"
        f" {function.pointer(region.source.buffer)}, {function.pointer(region.ids.buffer)},"
        f" {function.pointer(region.gates.buffer)}, Limits{limits}, [](F32x16 v) {{ return {activation}(v); }},"
        f" {function.pointer(region.output.buffer, written=True)});",
    )
    return function


def shape_of(region: Experts) -> str:
    """The C++ type that says what the mixture is made of."""
    attrs = region.attrs
    chosen = region.ids.elements
    gated = "true" if attrs["gated"] else "false"
    formats = f"{FORMATS[str(attrs['up_format'])]}, {FORMATS[str(attrs['down_format'])]}"
    return f"Mixture<{formats}, {attrs['experts']}, {chosen}, {region.source.elements}, {attrs['width']}, {gated}>"


def _number(value: object) -> int:
    assert isinstance(value, int), f"{value!r} is a size"
    return value


def _bias(function: Function, view: View | None) -> tuple[str, str]:
    if view is None:
        return "float", "nullptr"
    assert view.is_contiguous, "a bias lies as it was stored"
    return TYPES[view.buffer.dtype], function.base(view, "0")
