"""Attention as C++: one call of the `attention` template with the mask as a local struct."""

from llmc.codegen.cpp.emit_mask import emit_mask
from llmc.codegen.cpp.function import Function
from llmc.codegen.regions import Attention


def emit_attention(region: Attention) -> Function:
    """The function of one attention."""
    function = Function("attention")
    function.argument("Cache<Element> cache", f"cache({region.layer})")
    function.argument("std::byte* shared", "shared_by_attention()")
    function.add(f"// {region.mask}{'' if region.bias == '0' else f'; bias {region.bias}'}")
    emit_mask(function, region.mask, region.bias, region.tables, region.heads)
    sinks = "nullptr"
    if region.sinks is not None:
        name = function.base(region.sinks, "0")
        sinks = "sinks"
        function.add(f"alignas(64) float sinks[{region.heads}];")
        function.add(f"for (int h = 0; h < {region.heads}; ++h) sinks[h] = to_float(({name})[h]);")
    query, output = region.query, region.output
    assert query.axes[2].stride == 1, "the elements of a query's head follow one another"
    stride = query.axes[1].stride
    function.add(
        f"attention<Element, {region.heads}, {region.key_heads}, {region.key_size}, {region.value_size}>(",
        f"    team, step, cache, {sinks}, {region.scale!r}f, {region.softcap!r}f, mask,",
        f"    [&](int64_t t, int h) -> const float* {{ return {function.base(query, 't')} + h * {stride}; }},",
        "    shared,",
        f"    [&](int64_t t, int h, const float* y) {{ std::memcpy({function.base(output, 't', written=True)}"
        f" + h * {region.value_size}, y, {region.value_size} * sizeof(float)); }});",
    )
    return function
