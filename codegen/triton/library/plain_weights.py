"""Quantized weights as bfloat16 numbers by ordinary operations, for targets without NVIDIA's instructions.

The functions are those of `llmc.codegen.triton.library.weights`.
"""

import triton
import triton.language as tl


@triton.jit
def bytes_as_integers(q):
    """q - 128 for bytes q."""
    return (q.to(tl.float32) - 128.0).to(tl.bfloat16)


@triton.jit
def nibbles_as_integers(q, low_zero, high_zero):
    """8 v - zero for the four levels v of words, from the lowest bits up: even ones less `low_zero`, odd ones less
    `high_zero`, which are as `shifted_zero` gives them.
    """
    low, high = low_zero.to(tl.float32) + 128.0, high_zero.to(tl.float32) + 128.0
    first = (q & 15).to(tl.float32) * 8.0 + low
    second = ((q >> 4) & 15).to(tl.float32) * 8.0 + high
    third = ((q >> 8) & 15).to(tl.float32) * 8.0 + low
    fourth = ((q >> 12) & 15).to(tl.float32) * 8.0 + high
    return first.to(tl.bfloat16), second.to(tl.bfloat16), third.to(tl.bfloat16), fourth.to(tl.bfloat16)


@triton.jit
def scaled(weights, scale, rest):
    """weights * (scale + rest), rounded once; rest is small."""
    return (weights.to(tl.float32) * (scale.to(tl.float32) + rest.to(tl.float32))).to(tl.bfloat16)


@triton.jit
def nibbles_above_128(q):
    """128 + v for the four levels v of words, from the lowest bits up."""
    first, second = (q & 15).to(tl.float32) + 128.0, ((q >> 4) & 15).to(tl.float32) + 128.0
    third, fourth = ((q >> 8) & 15).to(tl.float32) + 128.0, ((q >> 12) & 15).to(tl.float32) + 128.0
    return first.to(tl.bfloat16), second.to(tl.bfloat16), third.to(tl.bfloat16), fourth.to(tl.bfloat16)


@triton.jit
def level_of_six_bits(bits):
    """v - 32 for levels v."""
    return (bits.to(tl.float32) - 32.0).to(tl.bfloat16)


@triton.jit
def sixes_as_integers(first, second, third):
    """v - 32 for the eight levels v of six bits in three words: two in each, from the lowest bits up; then one whose
    low four bits are the top ones of the first and whose others the two above those levels in the second; then one of
    the top ones of the third and of the second.
    """
    sixth = ((first >> 12) & 15) | ((second >> 8) & 48)
    seventh = ((third >> 12) & 15) | ((second >> 10) & 48)
    return (
        level_of_six_bits(first & 63),
        level_of_six_bits((first >> 6) & 63),
        level_of_six_bits(second & 63),
        level_of_six_bits((second >> 6) & 63),
        level_of_six_bits(third & 63),
        level_of_six_bits((third >> 6) & 63),
        level_of_six_bits(sixth),
        level_of_six_bits(seventh),
    )


@triton.jit
def fp8_as_numbers(q):
    """The e4m3 numbers that bytes stand for: a bfloat16 of the same exponent is smaller by 2^120."""
    wide = q.to(tl.int16)
    bits = ((wide & 127) << 4) | ((wide & 128) << 8)
    return (bits.to(tl.bfloat16, bitcast=True).to(tl.float32) * 1.329227995784916e36).to(tl.bfloat16)
