"""Functions of single numbers: activations by their names in regions, and what Triton's language lacks.

Arguments are fp32 tensors unless said otherwise. Results are within a few ulp of their values, or within 1e-7 where
those are near 0; a NaN stays one.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    """x sigmoid(x)."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def quick_gelu(x):
    """x sigmoid(1.702 x)."""
    return x / (1.0 + tl.exp(-1.702 * x))


@triton.jit
def relu(x):
    """The greater of x and 0."""
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def square(x):
    """x times itself."""
    return x * x


@triton.jit
def relu2(x):
    """The square of relu(x)."""
    positive = relu(x)
    return positive * positive


@triton.jit
def gelu(x):
    """x times the normal distribution's integral to x."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    """gelu by its tanh form: x / 2 (1 + tanh u) is x / (1 + e^-2u), which loses nothing where tanh u is near -1."""
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def tanh(x):
    """A polynomial near 0, where the exponential form would cancel."""
    square = x * x
    terms = -0.0057049864 * square + 0.020639086
    terms = terms * square - 0.053739715
    terms = terms * square + 0.13331442
    terms = terms * square - 0.3333328
    small = terms * square * x + x
    size = tl.abs(x)
    large = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * size))
    return tl.where(size < 0.625, small, tl.where(x < 0.0, -large, large))


@triton.jit
def erf(x):
    """The error function."""
    return tl.erf(x)


@triton.jit
def log1p(x):
    """log(1 + x) for finite x >= 0: what 1 + x loses of x is put right."""
    whole = 1.0 + x
    lost = whole - 1.0
    return tl.where(lost == 0.0, x, tl.log(whole) * (x / tl.where(lost == 0.0, 1.0, lost)))


@triton.jit
def softplus(x):
    """log(1 + e^x), or x itself above 20."""
    return tl.where(x > 20.0, x, log1p(tl.exp(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL))))


@triton.jit
def power(x, y):
    """x to the power of y; NaN for x below 0 unless y is whole."""
    exponent = y.to(tl.float64)
    base = tl.abs(x).to(tl.float64)
    # 0 and infinity take care of themselves but where they meet a y of 0
    size = tl.exp2(exponent * tl.log2(base))
    size = tl.where((exponent == 0.0) | (base == 1.0), 1.0, size)
    half = exponent * 0.5
    whole = tl.floor(exponent) == exponent
    odd = whole & (tl.floor(half) != half)
    signed = tl.where(x < 0.0, tl.where(whole, tl.where(odd, -size, size), float("nan")), size)
    return signed.to(tl.float32)


@triton.jit
def remainder(x, y):
    """The remainder of numbers, with the sign of the divisor."""
    wide, divisor = x.to(tl.float64), y.to(tl.float64)
    return (wide - divisor * tl.floor(wide / divisor)).to(tl.float32)


@triton.jit
def whole_divide(x, y):
    """The quotient of integers, rounded down."""
    quotient = x // y
    left = x - quotient * y
    return quotient - ((left != 0) & ((left < 0) != (y < 0))).to(tl.int64)


@triton.jit
def whole_remainder(x, y):
    """The remainder of integers, with the sign of the divisor."""
    return x - whole_divide(x, y) * y


@triton.jit
def maximum(x, y):
    """The greater of the two, NaN if one is; integers too."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """The lesser of the two, NaN if one is; integers too."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def wrapped(index, SIZE: tl.constexpr):
    """An int64 index that counts from the end when it is negative. Out of range it is that of an end, never beyond."""
    return tl.minimum(tl.maximum(tl.where(index < 0, index + SIZE, index), 0), SIZE - 1)
