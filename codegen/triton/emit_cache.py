"""What kernels write into the paged cache, in whatever form it holds keys and values.

Keys and values of eight bits share a scale over a head. A linear's programs need not own whole heads, so it leaves
them in the arena as they are; one more launch rounds and stores them before attention reads the cache.
"""

from llmc.codegen.layout import Buffer
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.runtime.cuda.plan import ONE, Extent

ELEMENTS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int8": "*u8", "fp8": "*u8"}
"""Triton types of pointers into a cache, by the dtype of its spec. int8 is kept as bytes, 128 more than the integer."""
SCALED = ("int8", "fp8")
"""Dtypes with a scale for each token and head."""
_ROWS = 16
"""Tokens of a program that stores keys and values with their scales."""


def store_cached(
    kernel: KernelText,
    context: Context,
    layer: int,
    role: str,
    *,
    row: str,
    slot: str,
    head: str,
    column: str,
    value: str,
    mask: str,
) -> None:
    """Add the line that stores keys (role "k") or values ("v") of some tokens.

    row (int64, of the step), slot (int64), head, column (of the head), value (fp32) and mask are expressions that
    broadcast against each other.
    """
    spec, size = context.caches[layer], _size(context, layer, role)
    if spec.dtype in SCALED:
        pointer = kernel.pointer(_incoming(context, layer, role), f"new_{role}")
        kernel.add(
            f"tl.store({pointer} + ({row} * {spec.heads * size} + {head} * {size} + {column}), {value}, mask={mask})"
        )
        return
    pointer = kernel.cache(role, layer, ELEMENTS[spec.dtype])
    function = kernel.call("cache", "store_cached")
    kernel.add(
        f"{function}({pointer}, {slot}, {head}, {column}, {value}, {mask}, {spec.heads}, {size}, {context.block_size})"
    )


def emit_scaled_stores(layer: int, context: Context) -> list[Draft]:
    """The launch that stores what a step's linears left of a layer's keys and values, if its cache has scales."""
    spec = context.caches[layer]
    if spec.dtype not in SCALED:
        return []
    kernel = KernelText("cache", f"keys and values of {spec.heads} heads as {spec.dtype}", pdl=context.pdl)
    if kernel.pdl:
        kernel.add("tl.extra.cuda.gdc_wait()", "tl.extra.cuda.gdc_launch_dependents()")
    kernel.add(
        "head = tl.program_id(1)",
        f"row = tl.program_id(0).to(tl.int64) * {_ROWS} + tl.arange(0, {_ROWS})",
        f"slot = tl.load({kernel.step('slots')} + row, mask=row < {kernel.size('T')}, other=0)",
    )
    function = kernel.call("cache", f"store_{spec.dtype}")
    for role in "kv":
        size = _size(context, layer, role)
        new = kernel.pointer(_incoming(context, layer, role), f"new_{role}")
        cache = kernel.cache(role, layer, ELEMENTS[spec.dtype])
        scales = kernel.cache(f"{role}_scale", layer, "*fp32")
        width = 1 << (size - 1).bit_length()
        kernel.add(
            f"{function}({new}, {cache}, {scales}, row, T, slot, head, {spec.heads}, {size}, {width},"
            f" {context.block_size})"
        )
    return [Draft(kernel, (Extent("T", per=_ROWS), Extent(times=spec.heads), ONE))]


def _size(context: Context, layer: int, role: str) -> int:
    spec = context.caches[layer]
    return spec.key_size if role == "k" else spec.value_size


def _incoming(context: Context, layer: int, role: str) -> Buffer:
    """Where a step's keys or values wait until they are stored, [T, heads * size]."""
    heads = context.caches[layer].heads
    return context.passed(f"new_{role}_{layer}", "T", heads * _size(context, layer, role), "f32")
