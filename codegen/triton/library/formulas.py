"""Arithmetic of mask formulas where Triton's differs from the formulas': division rounds down, powers."""

import triton
import triton.language as tl


@triton.jit
def floor_divide(x, y):
    """x / y rounded down, of integers; Triton's own rounds towards zero."""
    y = y + tl.zeros_like(x + y)
    quotient = x // y
    beyond = ((y > 0) & (quotient * y > x)) | ((y < 0) & (quotient * y < x))
    return quotient - beyond.to(quotient.dtype)


@triton.jit
def modulo(x, y):
    """What `floor_divide` leaves; its sign is y's."""
    return x - floor_divide(x, y) * y


@triton.jit
def floor_divide_real(x, y):
    """x / y rounded down."""
    return tl.floor(x / y)


@triton.jit
def modulo_real(x, y):
    """What `floor_divide_real` leaves; its sign is y's."""
    return x - tl.floor(x / y) * y


@triton.jit
def power(x, y):
    """x ** y in fp32; of negative x for whole y."""
    zero = tl.zeros_like(x + y)
    x, y = x + zero, y + zero  # either may be a number
    size = tl.exp2(y * tl.log2(tl.abs(x)))
    odd = y - 2.0 * tl.floor(y * 0.5) == 1.0
    whole = tl.where((x < 0) & odd, -size, size)
    return tl.where((x == 0) & (y == 0), 1.0, whole)
