"""Inline assembly in the interpreter: instructions against what the PTX manual says, packing, loud refusals."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.triton_interpreter import PtxError, install, launch, load_kernels, register_asm

Bits = NDArray[np.uint32]
BF16, F16 = torch.bfloat16, torch.float16


def words(count: int = 4096, seed: int = 0) -> Bits:
    return np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32)


def run(
    text: str, *inputs: torch.Tensor, output: torch.dtype = torch.int32, constraints: str = "", pack: int = 1
) -> torch.Tensor:
    """What assembly with one output gives for tensors of one size."""
    size = len(inputs[0])
    names = [f"i{at}" for at in range(len(inputs))]
    loads = ", ".join(f"tl.load({name} + i)" for name in names)
    kernel = f"""
import triton
import triton.language as tl
@triton.jit
def assembly({", ".join(names)}, o, TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr, B: tl.constexpr, PACK: tl.constexpr):
    i = tl.arange(0, B)
    found = tl.inline_asm_elementwise(TEXT, CONSTRAINTS, [{loads}], o.dtype.element_ty, is_pure=True, pack=PACK)
    tl.store(o + i, found)
"""
    made = torch.zeros(size, dtype=output)
    launch(
        load_kernels(kernel, "assembly").assembly,
        1,
        *inputs,
        made,
        text,
        constraints or ",".join(["=r", *["r"] * len(inputs)]),
        size,
        pack,
    )
    return made


def bits(values: Bits) -> torch.Tensor:
    return torch.from_numpy(values.view(np.int32))


def unbits(values: torch.Tensor) -> Bits:
    return values.numpy().view(np.uint32)


@pytest.mark.parametrize("table", [0xEA, 0xC0, 0xF8, 0x96, 0x00, 0xFF, 0x1B])
def test_lop3_is_any_function_of_three_bits(table: int) -> None:
    a, b, c = words(seed=1), words(seed=2), words(seed=3)
    found = unbits(run(f"lop3.b32 $0, $1, $2, $3, {table:#x};", bits(a), bits(b), bits(c)))
    for at in range(32):
        cases = (a >> at & 1) * 4 + (b >> at & 1) * 2 + (c >> at & 1)
        assert ((found >> at & 1) == (table >> cases & 1)).all()


@pytest.mark.parametrize("selector", [0x3210, 0x7654, 0x4140, 0x5342, 0x7440, 0x0000, 0xBA98, 0x8F1C])
def test_prmt_picks_bytes_or_their_signs(selector: int) -> None:
    a, b = words(seed=1), words(seed=2)
    source = np.stack([a, b], -1).view(np.uint8)
    wanted = np.empty((len(a), 4), np.uint8)
    for at in range(4):
        pick = selector >> 4 * at & 15
        byte = source[:, pick & 7]
        wanted[:, at] = np.where(byte & 0x80, 0xFF, 0) if pick & 8 else byte
    assert (unbits(run(f"prmt.b32 $0, $1, $2, {selector:#x};", bits(a), bits(b))) == wanted.view(np.uint32)[:, 0]).all()


INTEGERS: dict[str, Callable[[int, int], int]] = {
    "and.b32": lambda a, b: a & b, "or.b32": lambda a, b: a | b, "xor.b32": lambda a, b: a ^ b,
    "add.u32": lambda a, b: a + b, "sub.s32": lambda a, b: a - b, "mul.lo.u32": lambda a, b: a * b,
    "mul.hi.u32": lambda a, b: a * b >> 32, "mul.hi.s32": lambda a, b: signed(a) * signed(b) >> 32,
    "min.s32": lambda a, b: min(a, b, key=signed), "max.u32": max,
    "shl.b32": lambda a, b: a << min(b, 32), "shr.u32": lambda a, b: a >> min(b, 32),
    "shr.s32": lambda a, b: signed(a) >> min(b, 31),
    "add.u16x2": lambda a, b: (a + b & 0xFFFF) | ((a >> 16) + (b >> 16) << 16),
}  # fmt: skip


def signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_instructions(name: str) -> None:
    a, b = words(512, 1), words(512, 2)
    if name.startswith("sh"):
        b = b % np.uint32(40)
    wanted = [INTEGERS[name](int(x), int(y)) & 0xFFFFFFFF for x, y in zip(a, b, strict=True)]
    assert unbits(run(f"{name} $0, $1, $2;", bits(a), bits(b))).tolist() == wanted


def test_fields_of_bits() -> None:
    a = words(512, 1)
    assert (unbits(run("bfe.u32 $0, $1, 5, 7;", bits(a))) == (a >> 5 & 0x7F)).all()
    assert (unbits(run("bfe.s32 $0, $1, 4, 4;", bits(a))) == ((a >> 4 & 15 ^ 8) - np.uint32(8))).all()
    assert (unbits(run("bfi.b32 $0, $1, 0, 8, 4;", bits(a))) == (a & 15) << 8).all()
    assert unbits(run("popc.b32 $0, $1;", bits(a))).tolist() == [int(x).bit_count() for x in a]
    assert unbits(run("clz.b32 $0, $1;", bits(a >> 3))).tolist() == [32 - int(x >> 3).bit_length() for x in a]
    assert unbits(run("brev.b32 $0, $1;", bits(a))).tolist() == [int(f"{int(x):032b}"[::-1], 2) for x in a]


def test_dp4a_multiplies_bytes() -> None:
    a, b, c = words(512, 1), words(512, 2), words(512, 3)
    left, right = a.view(np.int8).reshape(-1, 4).astype(np.int64), b.view(np.uint8).reshape(-1, 4).astype(np.int64)
    wanted = (left * right).sum(1) + c
    found = unbits(run("dp4a.s32.u32 $0, $1, $2, $3;", bits(a), bits(b), bits(c)))
    assert (found == wanted.astype(np.uint32)).all()


def rounded(value: Fraction, dtype: torch.dtype) -> float:
    """A finite value to the nearest of a 16-bit format, ties to even, by the definition."""
    digits, lowest = {BF16: (8, -126), F16: (11, -14)}[dtype]
    if not value:
        return 0.0
    exponent = max(math.frexp(float(value))[1] - 1, lowest)
    step = Fraction(2) ** (exponent - digits + 1)
    return float(round(value / step) * step)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", BF16), ("f16", F16)])
def test_fma_on_pairs_rounds_once(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = ((torch.rand(4096, generator=generator) * 2 - 1).to(dtype) for _ in range(2))
    c = -(a.float() * b.float() * (1 + (torch.rand(4096, generator=generator) - 0.5) / 64)).to(dtype)  # cancels
    packed = [part.view(torch.int32) for part in (a, b, c)]
    found = run(f"fma.rn.{name}x2 $0, $1, $2, $3;", *packed).view(dtype).double()
    exact = [
        Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    assert found.tolist() == [rounded(value, dtype) for value in exact]


def test_a_tiny_addend_decides_a_tie_of_the_product() -> None:
    a, b = torch.full((16,), 1 + 2**-7), torch.full((16,), 1.5)
    c = torch.tensor([2.0**-100, -(2.0**-100)] * 8)
    found = run("fma.rn.bf16x2 $0, $1, $2, $3;", *(part.bfloat16().view(torch.int32) for part in (a, b, c)))
    assert found.view(BF16).tolist() == [1.5 + 2**-6, 1.5 + 2**-7] * 8


@pytest.mark.parametrize("name", ["add", "sub", "mul"])
@pytest.mark.parametrize(("kind", "dtype"), [("bf16", BF16), ("f16", F16)])
def test_arithmetic_on_pairs(name: str, kind: str, dtype: torch.dtype) -> None:
    a, b = torch.randn(4096).to(dtype), torch.randn(4096).to(dtype)
    found = run(f"{name}.{kind}x2 $0, $1, $2;", a.view(torch.int32), b.view(torch.int32)).view(dtype)
    assert torch.equal(found, getattr(torch, name)(a, b))


@pytest.mark.parametrize(
    ("text", "dtype"), [("cvt.rn.bf16x2.f32 $0, $2, $1;", BF16), ("cvt.rn.f16x2.f32 $0, $2, $1;", F16)]
)
def test_packing_two_floats(text: str, dtype: torch.dtype) -> None:
    low, high = torch.randn(1024) * 100, torch.randn(1024) * 100
    found = run(text, low, high, constraints="=r,f,f").view(dtype)
    assert torch.equal(found, torch.stack([low, high], -1).reshape(-1).to(dtype))


@pytest.mark.parametrize(("kind", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_bytes_of_floats_there_and_back(kind: str, dtype: torch.dtype) -> None:
    pairs = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    wanted = pairs.view(dtype).to(F16)
    found = run(f"cvt.rn.f16x2.{kind}x2 $0, $1;", pairs, constraints="=r,h").view(F16)
    assert torch.equal(found.nan_to_num(9), wanted.nan_to_num(9))
    finite = pairs[(wanted.reshape(-1, 2).isfinite()).all(1)][: 1 << 15]
    values = finite.view(dtype).float().reshape(-1, 2)
    back = run(
        f"cvt.rn.satfinite.{kind}x2.f32 $0, $2, $1;", *values.t().contiguous(), output=torch.int16, constraints="=h,f,f"
    )
    assert torch.equal(back, finite)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cvt.rni.s32.f32 $0, $1;", [2, 2, -2, 0, 2147483647, 0]),
        ("cvt.rzi.s32.f32 $0, $1;", [1, 2, -2, 0, 2147483647, 0]),
        ("cvt.rzi.u32.f32 $0, $1;", [1, 2, 0, 0, -1, 0]),
        ("cvt.rmi.s32.f32 $0, $1;", [1, 2, -3, -1, 2147483647, 0]),
    ],
)
def test_floats_to_integers(text: str, wanted: list[int]) -> None:
    values = torch.tensor([1.5, 2.5, -2.5, -0.25, 1e20, math.nan, 0, 0])
    assert run(text, values, constraints="=r,f").tolist()[:6] == wanted


def test_scopes_declarations_comments_guards_and_vectors() -> None:
    a = words(256, 1)
    text = """{ // a comment
        .reg .pred p<2>; .reg .b16 h0, h1; .reg .b32 t;
        mov.b32 {h0, h1}, $1; /* halves
        exchanged */ mov.b32 t, {h1, h0};
        { .reg .b32 t; mov.b32 t, 7; }
        setp.lt.u32 p0, $1, 0x80000000;
        mov.b32 $0, 0;
        @p0 mov.b32 $0, t;
        @!p0 add.u32 $0, t, 1U;
        selp.b32 $0, 5, $0, p1; }"""
    swapped = a >> 16 | a << 16
    wanted = np.where(a < 0x80000000, swapped, swapped + np.uint32(1))
    declared = text.replace("selp.b32 $0, 5, $0, p1; }", "}")
    assert (unbits(run(declared, bits(a))) == wanted).all()
    with pytest.raises(PtxError, match="read before it is written"):
        run(text, bits(a))


def test_elements_smaller_than_a_register_share_one() -> None:
    q = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    unpack = load_kernels(
        '''
import triton
import triton.language as tl
@triton.jit
def nibbles(q, low, high):
    i = tl.arange(0, 256)
    a, b = tl.inline_asm_elementwise("""{
        .reg .b32 t0, t1, eight, exponent;
        mov.b32 eight, 0x43084308; mov.b32 exponent, 0x43434343;
        and.b32 t0, $4, 0x0f0f0f0f; shr.u32 t1, $4, 4; and.b32 t1, t1, 0x0f0f0f0f;
        prmt.b32 $0, t0, exponent, 0x4140; prmt.b32 $1, t0, exponent, 0x4342;
        prmt.b32 $2, t1, exponent, 0x4140; prmt.b32 $3, t1, exponent, 0x4342;
        sub.bf16x2 $0, $0, eight; sub.bf16x2 $1, $1, eight; sub.bf16x2 $2, $2, eight; sub.bf16x2 $3, $3, eight; }""",
        "=r,=r,=r,=r,r", [tl.load(q + i)], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4)
    tl.store(low + i, a)
    tl.store(high + i, b)
'''
    )
    low, high = torch.zeros(256, dtype=BF16), torch.zeros(256, dtype=BF16)
    launch(unpack.nibbles, 1, q, low, high)
    assert torch.equal(low, ((q & 15).int() - 8).to(BF16)) and torch.equal(high, ((q >> 4).int() - 8).to(BF16))


def test_assembly_that_mixes_the_elements_of_an_invocation_shows() -> None:
    x = torch.arange(64, dtype=torch.int32).to(torch.uint8)
    reverse = run("prmt.b32 $0, $1, 0, 0x0123;", x, output=torch.uint8, pack=4)
    assert reverse.tolist() != x.reshape(-1, 4).flip(1).reshape(-1).tolist()
    assert run("prmt.b32 $0, $1, 0, 0x3210;", x, output=torch.uint8, pack=4).tolist() == x.tolist()


PREFETCHING = """
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
@triton.jit
def prefetches(w, o, BYTES: tl.constexpr):
    p = tl.program_id(0)
    tl.inline_asm_elementwise("{ .reg .b64 policy; createpolicy.fractional.L2::evict_last.b64 policy, 1.0; "
        "cp.async.bulk.prefetch.L2.global.L2::cache_hint [$1], $2, policy; mov.u32 $0, 0; }", "=r,l,r",
        [w + p * BYTES, tl.full((), BYTES, tl.int32)], dtype=tl.int32, is_pure=False, pack=1)
    tl.inline_asm_elementwise("prefetch.global.L2 [$1+8]; mov.u32 $0, 0;", "=r,l", [w + p * BYTES], dtype=tl.int32,
        is_pure=False, pack=1)
    gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()
    tl.inline_asm_elementwise("griddepcontrol.wait; griddepcontrol.launch_dependents; mov.u32 $0, 0;", "=r", [],
        dtype=tl.int32, is_pure=False, pack=1)
    gdc_launch_dependents()
    tl.store(o + p, p)

@triton.jit
def loads(x, o):
    i = tl.arange(0, 16)
    a, b = tl.inline_asm_elementwise("ld.global.nc.L1::no_allocate.v2.b32 {$0, $1}, [$2];", "=r,=r,l", [x + 2 * i],
        dtype=(tl.int32, tl.int32), is_pure=True, pack=1)
    tl.store(o + i, a + b)
"""


def test_prefetches_and_dependent_launches_change_nothing_but_stay_inside() -> None:
    module = load_kernels(PREFETCHING)
    w, o = torch.zeros(4096, dtype=torch.uint8), torch.zeros(5, dtype=torch.int32)
    launch(module.prefetches, 4, w, o, 1024)
    assert o.tolist() == [0, 1, 2, 3, 0]
    with pytest.raises(IndexError, match="outside every argument"):
        launch(module.prefetches, 5, w, o, 1024)
    with pytest.raises(PtxError, match="multiple of 16"):
        launch(module.prefetches, 1, w, o, 1000)


def test_loads_in_assembly_are_checked() -> None:
    module = load_kernels(PREFETCHING)
    x, o = torch.arange(32, dtype=torch.int32), torch.zeros(16, dtype=torch.int32)
    launch(module.loads, 1, x, o)
    assert torch.equal(o, x.reshape(-1, 2).sum(1).int())
    with pytest.raises(IndexError, match="outside every argument"):
        launch(module.loads, 1, x[:30].clone(), o)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bra done;", "no model of the instruction 'bra done'|done is not declared"),
        ("loop: add.u32 $0, $1, 1;", "labels"),
        ("vadd4.u32.u32.u32 $0, $1, $1, 0;", "no model of the instruction 'vadd4"),
        ("add.f32.wide $0, $1, $1;", r"no model of \.wide"),
        ("add.u32 $0, $1, t;", "t is not declared"),
        ("add.u32 $0, $1, 1", "no semicolon"),
        ("mov.u64 $0, %globaltimer;", "globaltimer"),
        ("add.u32 t, $1, $1;", "not declared"),
        ("{ .reg .b32 t; mov.b32 t, $1; }", r"writes nothing to \$0"),
        ("add.u64 $0, $1, $1;", "has 32 bits, 64 are read"),
        ("cvt.rn.e4m3x2.f32 $0, $1, $1;", "satfinite"),
    ],
)
def test_what_has_no_model_is_refused(text: str, told: str) -> None:
    with pytest.raises(PtxError, match=told):
        run(text, torch.zeros(16, dtype=torch.int32))


@pytest.mark.parametrize(
    ("constraints", "told"),
    [("=r,r,r", "1 outputs and 2 inputs"), ("=r,h", "32 bits do not fit"), ("=r,x", "constraint 'x'")],
)
def test_constraints_must_fit(constraints: str, told: str) -> None:
    with pytest.raises(PtxError, match=told):
        run("mov.b32 $0, $1;", torch.zeros(16, dtype=torch.int32), constraints=constraints)


def test_a_registered_model_takes_the_place_of_assembly() -> None:
    install()
    register_asm("my.own.instruction $0, $1;", lambda x: x * 3)
    x = torch.arange(16, dtype=torch.int32)
    assert torch.equal(run(" my.own.instruction $0, $1; ", x), x * 3)


def test_every_pair_of_float_kinds_converts_like_torch() -> None:
    kinds = {"f32": torch.float32, "f16": F16, "bf16": BF16}
    letters = {"f32": "f", "f16": "h", "bf16": "h"}
    for source, target in itertools.permutations(kinds, 2):
        values = (torch.randn(1024) * 50).to(kinds[source])
        wanted = values.to(kinds[target])
        rounding = "" if target == "f32" else ".rn"
        constraints = f"={letters[target]},{letters[source]}"
        found = run(f"cvt{rounding}.{target}.{source} $0, $1;", values, output=kinds[target], constraints=constraints)
        assert torch.equal(found, wanted), (source, target)
