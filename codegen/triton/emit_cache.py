"""What kernels write into the paged cache, in whatever form it holds keys and values."""

from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import KernelText

ELEMENTS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
"""Triton types of pointers into a cache, by the dtype of its spec."""


def store_cached(
    kernel: KernelText,
    context: Context,
    layer: int,
    role: str,
    *,
    slot: str,
    head: str,
    column: str,
    value: str,
    mask: str,
    axis: int,
) -> None:
    """Add the line that stores keys (role "k") or values ("v") of some tokens.

    slot (int64), head, column (of the head), value (fp32) and mask are expressions that broadcast against each other to
    two axes; along `axis` they hold one whole head (columns that the mask hides may follow), so that a cache with a
    scale for each token and head can take its maximum.
    """
    spec = context.caches[layer]
    size = spec.key_size if role == "k" else spec.value_size
    pointer = kernel.cache(role, layer, ELEMENTS[spec.dtype])
    function = kernel.call("cache", "store_cached")
    kernel.add(
        f"{function}({pointer}, {slot}, {head}, {column}, {value}, {mask}, {spec.heads}, {size}, {context.block_size})"
    )
