"""Keys and values of eight bits as fp16 numbers by ordinary operations, for targets without NVIDIA's instructions.

The functions are those of `llmc.codegen.triton.library.cached_numbers`.
"""

import triton
import triton.language as tl


@triton.jit
def int8_halves(q, PURE: tl.constexpr):
    """q - 128 for bytes q."""
    return (q.to(tl.float32) - 128.0).to(tl.float16)


@triton.jit
def int8_pairs(words):
    """The numbers of the first and of the second bytes of int16 words."""
    return int8_halves(words & 255, True), int8_halves((words >> 8) & 255, True)


@triton.jit
def fp8_halves(q, PURE: tl.constexpr):
    """The e4m3 numbers that bytes stand for: an fp16 number of the same exponent is smaller by 2^8."""
    wide = q.to(tl.int16)
    bits = ((wide & 127) << 7) | ((wide & 128) << 8)
    return (bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0).to(tl.float16)


@triton.jit
def fp8_pairs(words):
    """The e4m3 numbers of the first and of the second bytes of int16 words."""
    return fp8_halves(words & 255, True), fp8_halves((words >> 8) & 255, True)


@triton.jit
def logarithm(x):
    """The logarithm to base 2 of positive numbers."""
    return tl.log2(x)


@triton.jit
def inverse(x):
    """1 / x."""
    return 1.0 / x
