"""Number formats that numpy lacks, bit for bit as the GPU's conversion instructions treat them.

The interpreter holds bfloat16 as uint16 and 8-bit floats as uint8. `widen` turns such bits into float32 exactly;
`narrow` rounds float32 to the nearest value, ties to even, as `cvt.rn` does, and with `satfinite` for 8-bit floats:
what lies beyond the largest finite value, infinity included, becomes that value.
"""

from typing import Any

import numpy as np
import triton.language as tl
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]


def _decode_table(mantissa_bits: int, bias: int, finite_only: bool) -> Floats:
    """The value of each of the 256 codes of an 8-bit float."""
    codes = np.arange(256)
    exponent, mantissa = (codes & 0x7F) >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    values = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if finite_only:
        values[(codes & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == exponent.max()
        values[top & (mantissa == 0)] = np.inf
        values[top & (mantissa != 0)] = np.nan
    return np.where(codes & 0x80, -values, values).astype(np.float32)


_DECODED = {"fp8e4nv": _decode_table(3, 7, True), "fp8e5": _decode_table(2, 15, False)}
_SMALL = {"fp8e4nv": (3, 7, np.float32(448.0)), "fp8e5": (2, 15, np.float32(57344.0))}
"""Mantissa bits, exponent bias and largest finite value of the 8-bit floats."""
_HELD_AS_BITS = {"bf16", *_DECODED}


def is_held_as_bits(dtype: tl.dtype) -> bool:
    """Whether the interpreter holds values of a scalar type as integers, which numpy's arithmetic would misread."""
    return dtype.name in _HELD_AS_BITS


def widen(data: Array, dtype: tl.dtype) -> Floats:
    """The float32 values of what is held as `dtype`; exact for all floats of at most 32 bits."""
    if dtype.name == "bf16":
        return (data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype.name in _DECODED:
        return _DECODED[dtype.name][data]
    return data.astype(np.float32, copy=False)


def narrow(values: Array, dtype: tl.dtype, toward_zero: bool = False) -> Array:
    """What `dtype` holds for float32 or float64: the nearest, ties to even, or the next `toward_zero`."""
    if values.dtype == np.float64:
        values = _to_odd(values)
    if dtype.name == "bf16":
        return _to_bfloat16(values, toward_zero)
    if dtype.name in _SMALL:
        if toward_zero:
            raise NotImplementedError(f"no conversion to {dtype} that rounds towards zero")
        return _to_small(values, *_SMALL[dtype.name])
    if dtype.name == "fp16":
        return _to_half(values, toward_zero)
    raise NotImplementedError(f"no narrowing to {dtype}")


def _to_bfloat16(values: Array, toward_zero: bool) -> Array:
    bits = np.ascontiguousarray(values, dtype=np.float32).reshape(values.shape).view(np.uint32)
    # Adding to a NaN's bits may carry into an infinity, so NaNs are put back; the conversion gives 0x7fff for all.
    rounded = bits if toward_zero else bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    found = (rounded >> np.uint32(16)).astype(np.uint16)
    unordered = values != values
    if unordered.any():
        found = np.where(unordered, np.uint16(0x7FFF), found)
    return found


def _to_small(values: Array, mantissa_bits: int, bias: int, largest: np.float32) -> Array:
    wide = np.asarray(values, dtype=np.float32)
    bits = np.ascontiguousarray(np.minimum(np.abs(wide), largest)).reshape(wide.shape).view(np.uint32)
    drop = np.uint32(23 - mantissa_bits)
    half_less_one = np.uint32((1 << (23 - mantissa_bits - 1)) - 1)
    rounded = (bits + (half_less_one + ((bits >> drop) & np.uint32(1)))) >> drop
    normal = rounded.astype(np.int32) - ((127 - bias) << mantissa_bits)
    # Below the smallest normal value codes count equal steps; rounding up into the normal range gives its first code.
    steps = np.rint(bits.view(np.float32) * np.float32(2.0 ** (bias - 1 + mantissa_bits)))
    small = bits.view(np.float32) < np.float32(2.0 ** (1 - bias))
    with np.errstate(invalid="ignore"):
        code = np.where(small, steps, normal).astype(np.uint8)
    code = np.where(wide != wide, np.uint8(0x7F), code)
    return np.where(np.signbit(wide) & (wide == wide), code | np.uint8(0x80), code).astype(np.uint8)


def _to_half(values: Array, toward_zero: bool) -> Array:
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float16)
    if not toward_zero:
        return nearest
    over = np.abs(nearest.astype(np.float64)) > np.abs(values.astype(np.float64))
    return np.where(over, np.nextafter(nearest, np.float16(0)), nearest)


def _to_odd(values: Array) -> Floats:
    """float64 to float32, inexact results with an odd mantissa: rounding further gives what rounding once would."""
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32) - (np.abs(nearest.astype(np.float64)) > np.abs(values))
    inexact = (nearest.astype(np.float64) != values) & (values == values)
    return (bits | inexact).astype(np.uint32).view(np.float32)


def fused(a: Array, b: Array, c: Array) -> NDArray[np.float64]:
    """a * b + c of 16-bit floats as float64, inexact results with an odd mantissa, so that `narrow` rounds once."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    even = (total.view(np.uint64) & np.uint64(1)) == 0
    inexact = (error != 0) & np.isfinite(error) & even
    toward = np.where(error > 0, np.inf, -np.inf)
    found: NDArray[np.float64] = np.where(inexact, np.nextafter(total, toward), total)
    return found


def to_integer(values: Array, dtype: np.dtype) -> Array:
    """Floats to integers as `cvt.rzi` does: towards zero, out of range to the nearest end, NaN to 0."""
    info = np.iinfo(dtype)
    wide = np.trunc(values.astype(np.float64))
    inside = (wide >= info.min) & (wide < float(info.max) + 1 if info.bits == 64 else wide <= info.max)
    if inside.all():
        return wide.astype(dtype)
    ends = np.where(wide > 0, info.max, info.min)
    ends = np.where(np.isnan(wide), 0, ends).astype(dtype)
    return np.where(inside, np.where(inside, wide, 0).astype(dtype), ends)


def to_tf32(values: Floats) -> Floats:
    """What a tensor core reads of float32 operands: the low 13 bits of the mantissa are not looked at."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)
