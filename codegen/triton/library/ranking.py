"""The order of floats as one of integers: of equal numbers the first comes first, and NaN is the greatest."""

import triton
import triton.language as tl


@triton.jit
def ordered(x):
    """int32 numbers in the order of x."""
    x += 0.0  # -0 is 0
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x != x, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def unordered(key):
    """The number for which `ordered` gives an int32 key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def rank(x, index):
    """int64 numbers in the order of x; of equal ones that of the lower index (int32) is the greater."""
    low = (0x7FFFFFFF - index).to(tl.int64)
    return (ordered(x).to(tl.int64) << 32) | low


@triton.jit
def ranked_value(rank):
    """The number that has a rank."""
    return unordered((rank >> 32).to(tl.int32))


@triton.jit
def ranked_index(rank):
    """The index of the number that has a rank, int64."""
    return 0x7FFFFFFF - (rank & 0xFFFFFFFF)
