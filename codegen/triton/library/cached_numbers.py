"""Keys and values of eight bits as fp16 numbers, without conversions from integers.

A byte of int8, which is 128 more than its number, is placed in the mantissa of an fp16 number of 1024, and 1152 is
subtracted: one instruction each for two numbers. Everything is exact.

`*_halves` take bytes that lie side by side where they are multiplied; `*_pairs` take words of two bytes and give the
numbers of the first bytes and of the second ones, for matrices that are turned on the way, two bytes at a time as
matrix units read them. Functions that are not PURE are not moved behind what spreads a block over the warps: bytes are
unpacked once then, not by each warp that multiplies them.
"""

import triton
import triton.language as tl


@triton.jit
def int8_halves(q, PURE: tl.constexpr):
    """q - 128 for bytes q."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 a, b, less;
        mov.b32 less, 0xe480e480;
        prmt.b32 a, $2, 0x64646464, 0x4140;
        prmt.b32 b, $2, 0x64646464, 0x4342;
        add.rn.f16x2 $0, a, less;
        add.rn.f16x2 $1, b, less;
        }""",
        "=r,=r,r",
        [q],
        dtype=tl.float16,
        is_pure=PURE,
        pack=4,
    )


@triton.jit
def int8_pairs(words):
    """The numbers of the first and of the second bytes of int16 words."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 a, b, less;
        mov.b32 less, 0xe480e480;
        prmt.b32 a, $2, 0x64646464, 0x4240;
        prmt.b32 b, $2, 0x64646464, 0x4341;
        add.rn.f16x2 $0, a, less;
        add.rn.f16x2 $1, b, less;
        }""",
        "=r,=r,r",
        [words],
        dtype=(tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def fp8_halves(q, PURE: tl.constexpr):
    """The e4m3 numbers that bytes stand for, on targets with an instruction for two of them."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b16 low, high;
        mov.b32 {low, high}, $2;
        cvt.rn.f16x2.e4m3x2 $0, low;
        cvt.rn.f16x2.e4m3x2 $1, high;
        }""",
        "=r,=r,r",
        [q],
        dtype=tl.float16,
        is_pure=PURE,
        pack=4,
    )


@triton.jit
def fp8_pairs(words):
    """The e4m3 numbers of the first and of the second bytes of int16 words."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 sorted;
        .reg .b16 low, high;
        prmt.b32 sorted, $2, 0, 0x3120;
        mov.b32 {low, high}, sorted;
        cvt.rn.f16x2.e4m3x2 $0, low;
        cvt.rn.f16x2.e4m3x2 $1, high;
        }""",
        "=r,=r,r",
        [words],
        dtype=(tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def fp8_halves_by_shifts(q, PURE: tl.constexpr):
    """As `fp8_halves`, on older targets: an fp16 number of the same exponent is smaller by 2^8."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 a, b, s, t, up;
        mov.b32 up, 0x5c005c00;
        prmt.b32 a, $2, 0, 0x1404;
        prmt.b32 b, $2, 0, 0x3424;
        shr.u32 s, a, 1;
        shr.u32 t, b, 1;
        lop3.b32 s, s, 0x3f803f80, 0, 0xc0;
        lop3.b32 t, t, 0x3f803f80, 0, 0xc0;
        lop3.b32 s, a, 0x80008000, s, 0xea;
        lop3.b32 t, b, 0x80008000, t, 0xea;
        mul.rn.f16x2 $0, s, up;
        mul.rn.f16x2 $1, t, up;
        }""",
        "=r,=r,r",
        [q],
        dtype=tl.float16,
        is_pure=PURE,
        pack=4,
    )


@triton.jit
def fp8_pairs_by_shifts(words):
    """As `fp8_pairs`, on older targets."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 a, s, t, up;
        mov.b32 up, 0x5c005c00;
        shl.b32 a, $2, 8;
        lop3.b32 a, a, 0xff00ff00, 0, 0xc0;
        shr.u32 s, a, 1;
        shr.u32 t, $2, 1;
        lop3.b32 s, s, 0x3f803f80, 0, 0xc0;
        lop3.b32 t, t, 0x3f803f80, 0, 0xc0;
        lop3.b32 s, a, 0x80008000, s, 0xea;
        lop3.b32 t, $2, 0x80008000, t, 0xea;
        mul.rn.f16x2 $0, s, up;
        mul.rn.f16x2 $1, t, up;
        }""",
        "=r,=r,r",
        [words],
        dtype=(tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def logarithm(x):
    """The logarithm to base 2 of positive numbers, off by 2^-22."""
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def inverse(x):
    """1 / x, off by 2^-23 of it."""
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
