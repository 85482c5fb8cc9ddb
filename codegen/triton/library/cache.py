"""The paged cache on the device: [blocks, heads, BLOCK, SIZE], row-major.

Slot s is token s % BLOCK of block s // BLOCK.
"""

import triton
import triton.language as tl


@triton.jit
def cache_row(slot, head, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """The row of a slot (int64) and head, of which the cache has blocks * HEADS * BLOCK."""
    return ((slot // BLOCK) * HEADS + head) * BLOCK + slot % BLOCK


@triton.jit
def store_cached(cache, slot, head, column, value, mask, HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Store elements `column` of heads' keys or values; all but `cache` broadcast against each other."""
    row = cache_row(slot, head, HEADS, BLOCK)
    tl.store(cache + (row * SIZE + column), value.to(cache.dtype.element_ty), mask=mask)
