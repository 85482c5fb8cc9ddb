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


@triton.jit
def scale_of(values, LARGEST: tl.constexpr):
    """The scale of each row of `values` [rows, width]: the greatest magnitude / LARGEST rounded up to a bfloat16.

    It is 0 where it would be subnormal, and NaN where the row has a NaN.
    """
    exact = tl.max(tl.abs(values), 1) / LARGEST
    raised = ((exact.to(tl.int32, bitcast=True) + 0xFFFF) >> 16) << 16
    scale = tl.where(exact < 1.1754943508222875e-38, 0.0, raised.to(tl.float32, bitcast=True))
    return tl.where(tl.max((values != values).to(tl.int32), 1) > 0, float("nan"), scale)


@triton.jit
def rounded(x):
    """The nearest integer of |x| < 2^22, of two equally near ones the even one; as fp32."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def int8_bytes(numbers):
    """Integers from -127 to 127 as bytes, 128 more."""
    return (rounded(numbers) + 128.0).to(tl.uint8)


@triton.jit
def fp8_bytes(numbers):
    """e4m3 numbers up to 448 as bytes, rounded to nearest even. Below 2^-6 the byte is the number of steps of 2^-9."""
    size = tl.abs(numbers)
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    byte = tl.where(size < 0.015625, rounded(size * 512.0).to(tl.int32), normal)
    return (byte | tl.where(numbers < 0, 128, 0)).to(tl.uint8)


@triton.jit
def store_scaled(
    new, cache, scales, row, T, slot, head, HEADS, SIZE, WIDTH: tl.constexpr, BLOCK, LARGEST: tl.constexpr
):
    """Store keys or values of a head in eight bits: rows of `new` [T, HEADS * SIZE] at their slots."""
    column = tl.arange(0, WIDTH)
    inside = (row < T)[:, None] & (column < SIZE)[None, :]
    values = tl.load(new + (row * (HEADS * SIZE))[:, None] + (head * SIZE + column)[None, :], mask=inside, other=0.0)
    scale = scale_of(values, LARGEST)
    inverse = tl.where(scale > 0, 1.0 / scale, 0.0)
    numbers = tl.minimum(tl.maximum(values * inverse[:, None], -LARGEST), LARGEST)
    place = cache_row(slot, head, HEADS, BLOCK)
    stored = int8_bytes(numbers) if LARGEST == 127.0 else fp8_bytes(numbers)
    tl.store(cache + (place * SIZE)[:, None] + column[None, :], stored, mask=inside)
    tl.store(scales + place, scale, mask=row < T)


@triton.jit
def store_int8(new, cache, scales, row, T, slot, head, HEADS, SIZE, WIDTH: tl.constexpr, BLOCK):
    """`store_scaled` as integers."""
    store_scaled(new, cache, scales, row, T, slot, head, HEADS, SIZE, WIDTH, BLOCK, 127.0)


@triton.jit
def store_fp8(new, cache, scales, row, T, slot, head, HEADS, SIZE, WIDTH: tl.constexpr, BLOCK):
    """`store_scaled` as e4m3 numbers."""
    store_scaled(new, cache, scales, row, T, slot, head, HEADS, SIZE, WIDTH, BLOCK, 448.0)
