"""Quantized weights as bfloat16 numbers, without conversions from integers.

A byte is placed in the mantissa of a bfloat16 whose exponent makes its last bit a whole step, and what that exponent
adds is subtracted: all of it is exact. Each function treats every element by itself, whatever the layout.
"""

import triton
import triton.language as tl


@triton.jit
def bytes_as_integers(q):
    """int8: q - 128 for bytes q, from -128 to 127. The low seven bits and the top one are taken apart: a mantissa has
    seven. 128 + (q & 127), less 128 where the top bit is set, else 256.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 low, top, l0, l1, t0, t1, one;
        mov.b32 one, 0x3f803f80;
        lop3.b32 low, $2, 0x7f7f7f7f, 0, 0xc0;
        lop3.b32 top, $2, 0x80808080, 0, 0x0c;
        prmt.b32 l0, low, 0x43434343, 0x4140;
        prmt.b32 l1, low, 0x43434343, 0x4342;
        prmt.b32 t0, top, 0xc3c3c3c3, 0x4140;
        prmt.b32 t1, top, 0xc3c3c3c3, 0x4342;
        fma.rn.bf16x2 $0, l0, one, t0;
        fma.rn.bf16x2 $1, l1, one, t1;
        }""",
        "=r,=r,r",
        [q],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def nibbles_as_integers(q, low_zero, high_zero):
    """8 v - zero for the four levels v of words, from the lowest bits up: even ones less `low_zero`, odd ones less
    `high_zero`, which are as `shifted_zero` gives them.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 s, a, b, c, d, mask, base, one;
        mov.b32 mask, 0x00780078;
        mov.b32 base, 0x43004300;
        mov.b32 one, 0x3f803f80;
        shl.b32 s, $4, 3;
        lop3.b32 a, s, mask, base, 0xea;
        shr.u32 s, $4, 1;
        lop3.b32 b, s, mask, base, 0xea;
        shr.u32 s, $4, 5;
        lop3.b32 c, s, mask, base, 0xea;
        shr.u32 s, $4, 9;
        lop3.b32 d, s, mask, base, 0xea;
        fma.rn.bf16x2 $0, a, one, $5;
        fma.rn.bf16x2 $1, b, one, $6;
        fma.rn.bf16x2 $2, c, one, $5;
        fma.rn.bf16x2 $3, d, one, $6;
        }""",
        "=&r,=&r,=&r,=r,r,r,r",
        [q, low_zero, high_zero],
        dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def nibbles_above_128(q):
    """128 + v for the four levels v of words, from the lowest bits up."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 s, mask, base;
        mov.b32 mask, 0x000f000f;
        mov.b32 base, 0x43004300;
        lop3.b32 $0, $4, mask, base, 0xea;
        shr.u32 s, $4, 4;
        lop3.b32 $1, s, mask, base, 0xea;
        shr.u32 s, $4, 8;
        lop3.b32 $2, s, mask, base, 0xea;
        shr.u32 s, $4, 12;
        lop3.b32 $3, s, mask, base, 0xea;
        }""",
        "=&r,=&r,=&r,=r,r",
        [q],
        dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def sixes_as_integers(first, second, third):
    """v - 32 for the eight levels v of six bits in three words: two in each, from the lowest bits up; then one whose
    low four bits are the top ones of the first and whose others the two above those levels in the second; then one of
    the top ones of the third and of the second.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 s, t, mask, low, high, base, one, bias;
        mov.b32 mask, 0x003f003f;
        mov.b32 low, 0x000f000f;
        mov.b32 high, 0x00300030;
        mov.b32 base, 0x43004300;
        mov.b32 one, 0x3f803f80;
        mov.b32 bias, 0xc320c320;
        lop3.b32 t, $8, mask, base, 0xea;
        fma.rn.bf16x2 $0, t, one, bias;
        shr.u32 s, $8, 6;
        lop3.b32 t, s, mask, base, 0xea;
        fma.rn.bf16x2 $1, t, one, bias;
        lop3.b32 t, $9, mask, base, 0xea;
        fma.rn.bf16x2 $2, t, one, bias;
        shr.u32 s, $9, 6;
        lop3.b32 t, s, mask, base, 0xea;
        fma.rn.bf16x2 $3, t, one, bias;
        lop3.b32 t, $10, mask, base, 0xea;
        fma.rn.bf16x2 $4, t, one, bias;
        shr.u32 s, $10, 6;
        lop3.b32 t, s, mask, base, 0xea;
        fma.rn.bf16x2 $5, t, one, bias;
        shr.u32 s, $8, 12;
        lop3.b32 t, s, low, base, 0xea;
        shr.u32 s, $9, 8;
        lop3.b32 t, s, high, t, 0xea;
        fma.rn.bf16x2 $6, t, one, bias;
        shr.u32 s, $10, 12;
        lop3.b32 t, s, low, base, 0xea;
        shr.u32 s, $9, 10;
        lop3.b32 t, s, high, t, 0xea;
        fma.rn.bf16x2 $7, t, one, bias;
        }""",
        "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=r,r,r,r",
        [first, second, third],
        dtype=(
            tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
        ),
        is_pure=True,
        pack=2,
    )  # fmt: skip


@triton.jit
def fp8_as_numbers(q):
    """The e4m3 numbers that bytes stand for. A byte's exponent is that of the bfloat16, smaller by 120."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 p0, p1, s0, s1, up, zero;
        mov.b32 up, 0x7b807b80;
        mov.b32 zero, 0x80008000;
        prmt.b32 p0, $2, 0, 0x1404;
        prmt.b32 p1, $2, 0, 0x3424;
        shr.u32 s0, p0, 4;
        shr.u32 s1, p1, 4;
        lop3.b32 s0, s0, 0x07f007f0, 0, 0xc0;
        lop3.b32 s1, s1, 0x07f007f0, 0, 0xc0;
        lop3.b32 s0, p0, 0x80008000, s0, 0xea;
        lop3.b32 s1, p1, 0x80008000, s1, 0xea;
        fma.rn.bf16x2 $0, s0, up, zero;
        fma.rn.bf16x2 $1, s1, up, zero;
        }""",
        "=r,=r,r",
        [q],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def scaled(weights, scale, rest):
    """weights * (scale + rest), rounded once; rest is small."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 less, zero;
        mov.b32 zero, 0x80008000;
        fma.rn.bf16x2 less, $1, $3, zero;
        fma.rn.bf16x2 $0, $1, $2, less;
        }""",
        "=r,r,r,r",
        [weights, scale, rest],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def half_of(words, PLACE: tl.constexpr):
    """One of the halves that lie in integers, as fp32."""
    return (words >> (16 * PLACE)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def shifted_zero(zero):
    """-128 - zero as bfloat16 for zeros from 0 to 120: what is added to 128 + 8 v to make 8 v - zero."""
    return (zero | -15616).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def zero_above_128(zero):
    """128 + zero / 8 as fp32 for integers from 0 to 255."""
    return ((zero << 13) | 0x43000000).to(tl.float32, bitcast=True)


@triton.jit
def prefetch(pointers):
    """Ask for the lines of memory at some pointers, into the second cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )
