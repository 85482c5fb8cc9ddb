"""The machine on small kernels: arithmetic, memory, paths that part and meet, barriers, lanes."""

import numpy as np
import pytest
from support.ptx_text import GLOBAL_INDEX, at, kernel
from support.software_machine import PtxModule, PtxRefused

RANDOM = np.random.default_rng(3)


def per_thread(lines: str, *inputs: np.ndarray, result: type = np.uint32, threads: int = 64) -> np.ndarray:
    """[threads] what `lines` leave in %x (%d_x where it has 64 bits) of the inputs %a, %b, %c (or %d_a, ...)."""
    count = len(inputs[0]) if inputs else threads
    names = "abc"[: len(inputs)]
    loads = []
    for name, values in zip(names, inputs, strict=True):
        register = f"%{'d_' if values.itemsize == 8 else ''}{name}"
        loads += [
            at(f"from_{name}", "%index", values.itemsize),
            f"ld.global.b{8 * values.itemsize} {register}, [%d_at];",
        ]
    bytes = np.dtype(result).itemsize
    store = f"{at('to', '%index', bytes)}\n    st.global.b{8 * bytes} [%d_at], %{'d_' if bytes == 8 else ''}x;"
    text = kernel(
        "\n    ".join([GLOBAL_INDEX, *loads, lines, store]), parameters=" ".join([*(f"from_{n}" for n in names), "to"])
    )
    found = np.zeros(count, result)
    PtxModule(text).launch("test", [count // threads], threads, [*inputs, found])
    return found


def words(count: int = 128) -> np.ndarray:
    """Random 32-bit numbers, small and large."""
    made = RANDOM.integers(-(2**31), 2**31, count)
    made[::3] = RANDOM.integers(-40, 40, len(made[::3]))
    return made.astype(np.int32)


WORDS = {
    "add.s32 %x, %a, %b;": lambda a, b, c: a + b,
    "sub.u32 %x, %a, %b;": lambda a, b, c: a - b,
    "mul.lo.s32 %x, %a, %b;": lambda a, b, c: a * b,
    "mul.hi.s32 %x, %a, %b;": lambda a, b, c: a * b >> 32,
    "mul.hi.u32 %x, %a, %b;": lambda a, b, c: (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF) >> 32,
    "mad.lo.s32 %x, %a, %b, %c;": lambda a, b, c: a * b + c,
    "min.s32 %x, %a, %b;": lambda a, b, c: min(a, b),
    "max.u32 %x, %a, %b;": lambda a, b, c: max(a & 0xFFFFFFFF, b & 0xFFFFFFFF),
    "min.relu.s32 %x, %a, %b;": lambda a, b, c: max(0, min(a, b)),
    "neg.s32 %x, %a;": lambda a, b, c: -a,
    "abs.s32 %x, %a;": lambda a, b, c: abs(a),
    "not.b32 %x, %a;": lambda a, b, c: ~a,
    "and.b32 %x, %a, 0x0ff0;": lambda a, b, c: a & 0x0FF0,
    "or.b32 %x, %a, %b;": lambda a, b, c: a | b,
    "xor.b32 %x, %a, %b;": lambda a, b, c: a ^ b,
    "shl.b32 %x, %a, %b;": lambda a, b, c: a << b if 0 <= b < 32 else 0,
    "shr.u32 %x, %a, %b;": lambda a, b, c: (a & 0xFFFFFFFF) >> b if 0 <= b < 32 else 0,
    "shr.s32 %x, %a, %b;": lambda a, b, c: a >> (b if 0 <= b < 32 else 31),
    "setp.lt.s32 %p, %a, %b;\n selp.b32 %x, %c, 7, %p;": lambda a, b, c: c if a < b else 7,
    "setp.hi.u32 %p, %a, %b;\n selp.b32 %x, 1, 0, %p;": lambda a, b, c: (a & 0xFFFFFFFF) > (b & 0xFFFFFFFF),
    "setp.ge.s32 %p|%pn, %a, %b;\n selp.b32 %x, %a, %b, %pn;": lambda a, b, c: b if a >= b else a,
    "setp.eq.s32 %q, %a, %a;\n setp.ne.and.s32 %p, %a, %b, %q;\n selp.b32 %x, 1, 0, %p;".replace("%q", "%pq"):
        lambda a, b, c: a != b,
    "add.s16x2 %x, %a, %b;": lambda a, b, c: (a + b & 0xFFFF) | ((a >> 16) + (b >> 16) & 0xFFFF) << 16,
    "min.u16x2 %x, %a, %b;":
        lambda a, b, c: min(a & 0xFFFF, b & 0xFFFF) | min(a >> 16 & 0xFFFF, b >> 16 & 0xFFFF) << 16,
    "mul.wide.s32 %d, %a, %b;\n mov.b64 {_, %x}, %d;": lambda a, b, c: a * b >> 32,
    "add.cc.u32 %x, %a, %b;\n addc.u32 %x, 0, 0;": lambda a, b, c: (a & 0xFFFFFFFF) + (b & 0xFFFFFFFF) >> 32,
    "mad.lo.cc.u32 %t, %a, %b, %c;\n madc.hi.u32 %x, %a, %b, 0;":
        lambda a, b, c: (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF) + (c & 0xFFFFFFFF) >> 32,
    "mov.b32 {%h, %hi}, %a;\n mov.b32 %x, {%hi, %h};": lambda a, b, c: (a & 0xFFFF) << 16 | a >> 16 & 0xFFFF,
    "cvt.u16.u32 %h, %a;\n cvt.s32.s16 %x, %h;": lambda a, b, c: (a & 0xFFFF ^ 0x8000) - 0x8000,
    "{ .reg .b32 %a2; mov.b32 %a2, 5; add.s32 %x, %a, %a2; }\n add.s32 %x, %x, %b;": lambda a, b, c: a + 5 + b,
}  # fmt: skip


@pytest.mark.parametrize("lines", WORDS)
def test_words(lines: str) -> None:
    a, b, c = words(), words(), words()
    found = per_thread(lines, a, b, c)
    wanted = [WORDS[lines](*map(int, three)) & 0xFFFFFFFF for three in zip(a, b, c, strict=True)]
    assert found.tolist() == wanted


def test_long_words() -> None:
    a = RANDOM.integers(-(2**62), 2**62, 128)
    b = RANDOM.integers(-(2**62), 2**62, 128)
    with np.errstate(over="ignore"):
        for lines, wanted in (
            ("add.s64 %d_x, %d_a, %d_b;", a + b),
            ("mul.lo.s64 %d_x, %d_a, %d_b;", a * b),
            ("min.s64 %d_x, %d_a, %d_b;", np.minimum(a, b)),
            ("shr.s64 %d_x, %d_a, 13;", a >> 13),
            ("mul.hi.s64 %d_x, %d_a, %d_b;", [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]),
            ("setp.lt.u64 %p, %d_a, %d_b; selp.b64 %d_x, %d_a, 3, %p;", np.where(a.view("u8") < b.view("u8"), a, 3)),
        ):
            assert per_thread(lines, a, b, result=np.int64).tolist() == list(wanted), lines


def test_floats_round_once_and_flush_where_they_say_so() -> None:
    a, b, c = (RANDOM.standard_normal(128).astype(np.float32) for _ in range(3))
    a[0], b[0] = 1e-30, 1e-10
    exact = a.astype(np.float64) * b + c  # of two fp32 numbers the product is exact in fp64
    assert np.array_equal(per_thread("fma.rn.f32 %x, %a, %b, %c;", a, b, c, result=np.float32), exact.astype("f4"))
    assert np.array_equal(per_thread("mul.f32 %x, %a, %b;", a, b, result=np.float32), a * b)
    assert np.array_equal(per_thread("add.f32 %x, %a, 0f3F800000;", a, result=np.float32), a + 1)
    flushed = per_thread("mul.ftz.f32 %x, %a, %b;", a, b, result=np.float32)
    assert flushed[0] == 0 != (a * b)[0]
    assert np.array_equal(flushed[1:], (a * b)[1:])


def test_numbers_of_threads_and_blocks_in_three_dimensions() -> None:
    text = kernel(
        """mov.u32 %x, %tid.x; mov.u32 %y, %tid.y; mov.u32 %z, %tid.z;
    mad.lo.s32 %t, %z, 3, %y; mad.lo.s32 %t, %t, 4, %x;
    mov.u32 %x, %ctaid.x; mov.u32 %y, %ctaid.y; mov.u32 %z, %ctaid.z;
    mov.u32 %nx, %nctaid.x; mov.u32 %ny, %nctaid.y;
    mad.lo.s32 %block, %z, %ny, %y; mad.lo.s32 %block, %block, %nx, %x;
    mad.lo.s32 %index, %block, 24, %t;\n"""
        + at("to", "%index", 4)
        + "\nmov.u32 %lane, %laneid;\nadd.s32 %x, %index, %lane; st.global.b32 [%d_at], %x;",
        parameters="to",
    )
    found = np.zeros(24 * 30, np.int32)
    PtxModule(text).launch("test", [5, 2, 3], [4, 3, 2], [found])
    assert np.array_equal(found, np.arange(720) + np.arange(720) % 24)


def test_parts_of_words_and_vectors_in_memory() -> None:
    """Loads extend by the sign or by zeros, stores cut."""
    text = kernel(
        """mov.u32 %t, %tid.x; mul.wide.u32 %d_4, %t, 4; mul.wide.u32 %d_16, %t, 16;
    add.s64 %d_from, %d_from, %d_4; add.s64 %d_to, %d_to, %d_16;
    ld.global.s8 %a, [%d_from+1]; ld.global.u8 %b, [%d_from+1];
    ld.global.s16 %c, [%d_from+2]; ld.global.b16 %h, [%d_from+2];
    cvt.u32.u16 %d, %h; st.global.v4.b32 [%d_to], {%a, %b, %c, %d}; st.global.b16 [%d_to+12], %a;""".replace(
            "%d, %h", "%u, %h"
        ).replace("%c, %d}", "%c, %u}"),
        parameters="from to",
    )
    given, found = words(32), np.zeros((32, 4), np.int32)
    PtxModule(text).launch("test", [1], 32, [given, found])
    bytes, halves = given.view(np.int8).reshape(32, 4), given.view(np.int16).reshape(32, 2)
    last = (halves[:, 1].astype(np.uint16).astype(np.int64) & ~0xFFFF) | bytes[:, 1].astype(np.int16).astype(np.uint16)
    wanted = np.stack([bytes[:, 1], bytes[:, 1].view(np.uint8), halves[:, 1], last], 1)
    assert np.array_equal(found, wanted)


def test_memory_of_each_thread() -> None:
    lines = """mov.b32 %base, depot; and.b32 %i, %thread, 3; shl.b32 %i, %i, 2; add.s32 %i, %i, %base;
    st.local.b32 [depot], %thread; st.local.b32 [depot+4], 11; st.local.b32 [depot+8], 22; st.local.b32 [depot+12], 33;
    ld.local.b32 %x, [%i];"""
    found = per_thread(f".local .align 4 .b8 depot[16];\n{lines}", result=np.int32)
    assert found.tolist() == [[t, 11, 22, 33][t % 4] for t in range(64)]


def test_tables_of_a_module() -> None:
    table = ".global .align 4 .b32 table[4] = {5, 6, 0xffffffff, 8};"
    text = kernel(
        f"{GLOBAL_INDEX} and.b32 %i, %index, 3; mov.b64 %d_table, table; {at('table', '%i', 4)}"
        "ld.global.b32 %x, [%d_at];"
        f"ld.global.b32 %y, [table+4]; add.s32 %x, %x, %y; {at('to', '%index', 4)} st.global.b32 [%d_at], %x;",
        parameters="to",
        outside=table,
    )
    found = np.zeros(32, np.int32)
    PtxModule(text).launch("test", [1], 32, [found])
    assert found.tolist() == [11, 12, 5, 14] * 8


def test_paths_part_and_meet_again() -> None:
    """Collatz: how many steps each number takes, odd ones by another way than even ones."""
    lines = """mov.b32 %x, 0; mov.b32 %n, %a;
AGAIN:
    setp.eq.s32 %p, %n, 1; @%p bra DONE;
    add.s32 %x, %x, 1;
    and.b32 %odd, %n, 1; setp.eq.s32 %pe, %odd, 0; @%pe bra EVEN;
    mad.lo.s32 %n, %n, 3, 1;
    bra AGAIN;
EVEN:
    shr.s32 %n, %n, 1;
    bra.uni AGAIN;
DONE:
    shfl.sync.idx.b32 %first, %x, 0, 31, -1;"""
    given = np.arange(1, 129, dtype=np.int32)

    def steps(n: int) -> int:
        return 0 if n == 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    assert per_thread(lines, given, result=np.int32).tolist() == [steps(int(n)) for n in given]


def test_threads_that_are_done_leave_the_others_alone() -> None:
    text = kernel(
        f"{GLOBAL_INDEX} {at('to', '%index', 4)} setp.lt.u32 %p, %index, 10; @%p ret;"
        "@!%p st.global.b32 [%d_at], %index; setp.lt.u32 %p, %index, 20; @!%p exit; mov.b32 %x, -1;"
        "st.global.b32 [%d_at], %x;",
        parameters="to",
    )
    found = np.zeros(64, np.int32)
    PtxModule(text).launch("test", [1], 64, [found])
    assert found.tolist() == [0] * 10 + [-1] * 10 + list(range(20, 64))


def test_a_block_that_is_no_whole_warp() -> None:
    text = kernel(f"{GLOBAL_INDEX} {at('to', '%index', 4)} st.global.b32 [%d_at], %index;", parameters="to")
    found = np.full(3 * 45 + 1, -1, np.int32)
    PtxModule(text).launch("test", [3], 45, [found[:-1]])
    assert found.tolist() == [*range(135), -1]


SHARED = ".extern .shared .align 16 .b8 memory[];"


def test_a_barrier_makes_shared_memory_visible() -> None:
    text = kernel(
        f"{GLOBAL_INDEX} mov.b32 %base, memory; shl.b32 %s, %thread, 2; add.s32 %s, %s, %base;"
        "st.shared.b32 [%s], %index; bar.sync 0; sub.s32 %r, 127, %thread; shl.b32 %r, %r, 2; add.s32 %r, %r, %base;"
        f"ld.shared.b32 %x, [%r]; {at('to', '%index', 4)} st.global.b32 [%d_at], %x;",
        parameters="to",
        outside=SHARED,
        threads=128,
    )
    found = np.zeros(256, np.int32)
    PtxModule(text).launch("test", [2], 128, [found], shared=512)
    assert np.array_equal(found.reshape(2, 128), np.arange(256).reshape(2, 128)[:, ::-1])


@pytest.mark.parametrize("threads", [32, 96])
def test_lanes(threads: int) -> None:
    lane = np.arange(96) % 32
    a = words(96)
    warps = a.reshape(-1, 32)
    down = np.where(lane + 3 < 32, np.roll(a, -3), a)
    up = np.where(lane >= 3, np.roll(a, 3), a)
    eights = np.array([a[i // 8 * 8 + (i + 2 if i % 8 + 2 < 8 else i) % 8] for i in range(96)])
    spread = {
        "shfl.sync.bfly.b32 %x, %a, 5, 31, -1;": warps[:, np.arange(32) ^ 5].reshape(-1),
        "shfl.sync.down.b32 %x, %a, 3, 31, -1;": down,
        "shfl.sync.up.b32 %x, %a, 3, 0, -1;": up,
        "shfl.sync.idx.b32 %x, %a, 7, 31, -1;": np.repeat(warps[:, 7], 32),
        "shfl.sync.down.b32 %x, %a, 2, 0x181f, 0xffffffff;": eights,
        "shfl.sync.down.b32 %y|%p, %a, 3, 31, -1; selp.b32 %x, 1, 0, %p;": lane + 3 < 32,
        "redux.sync.min.s32 %x, %a, -1;": np.repeat(warps.min(1), 32),
        "redux.sync.add.s32 %x, %a, -1;": np.repeat(warps.astype(np.int64).sum(1), 32).astype(np.int32),
        "redux.sync.max.u32 %x, %a, -1;": np.repeat(warps.view(np.uint32).max(1), 32).view(np.int32),
        "setp.gt.s32 %p, %a, 0; vote.sync.ballot.b32 %x, %p, -1;": np.repeat(
            ((warps > 0) << np.arange(32)).sum(1).astype(np.uint32), 32
        ).view(np.int32),
        "setp.ne.s32 %p, %a, %a; vote.sync.any.pred %pa, %p, -1; selp.b32 %x, 1, 0, %pa;": 0 * lane,
    }
    for lines, wanted in spread.items():
        assert np.array_equal(per_thread(lines, a, result=np.int32, threads=threads), wanted), lines


def test_atomic_operations_of_many_blocks() -> None:
    text = kernel(
        f"{GLOBAL_INDEX} atom.global.gpu.relaxed.add.u32 %old, [%d_to], %index;"
        "red.global.gpu.relaxed.max.s32 [%d_to+4], %index;"
        "cvt.rn.f32.u32 %f, %thread; atom.global.add.f32 %f, [%d_to+8], %f; mov.b32 %one, 1;"
        "atom.global.cas.b32 %y, [%d_to+12], 0, %one; atom.global.exch.b32 %y, [%d_to+16], 77;"
        "atom.global.inc.u32 %y, [%d_to+20], 99;",
        parameters="to",
    )
    found = np.zeros(6, np.int32)
    PtxModule(text).launch("test", [5], 64, [found])
    assert found[[0, 1, 3, 4, 5]].tolist() == [320 * 319 // 2, 319, 1, 77, 320 % 100]
    assert found[2:3].view(np.float32)[0] == 5 * 64 * 63 / 2


COPY = """mov.u32 %t, %tid.x; shl.b32 %s, %t, 4; cvt.u64.u32 %d_by, %s; add.s64 %d_from, %d_from, %d_by;
    mov.b32 %base, memory; add.s32 %s, %s, %base; setp.lt.u32 %p, %t, 20; selp.b32 %n, 16, 4, %p;
    cp.async.cg.shared.global [%s+0], [%d_from+0], 16, %n; cp.async.commit_group;
    cp.async.ca.shared.global [%s+1024], [%d_from+0], 4; cp.async.commit_group;"""


def test_copies_in_the_background() -> None:
    text = kernel(
        COPY + "cp.async.wait_group 1; ld.shared.v4.b32 {%a, %b, %c, %e}, [%s]; cp.async.wait_group 0;"
        "ld.shared.b32 %f, [%s+1024]; add.s32 %a, %a, %f; add.s64 %d_to, %d_to, %d_by;"
        "st.global.v4.b32 [%d_to], {%a, %b, %c, %e};",
        parameters="from to",
        outside=SHARED,
    )
    given, found = RANDOM.integers(0, 1 << 30, (32, 4)).astype(np.int32), np.zeros((32, 4), np.int32)
    PtxModule(text).launch("test", [1], 32, [given, found], shared=2048)
    wanted = given.copy()
    wanted[20:, 1:] = 0
    wanted[:, 0] *= 2
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("frobnicate.s32 %x, %y;", r"^test: line \d+: frobnicate\.s32: unknown instruction$"),
        ("tcgen05.alloc.b32 [%x], 3;", "tcgen05.alloc.b32: unknown instruction"),
        ("add.s32 %x, %d_y;", "2 operands, expected 3"),
        ("add.s32 %x, %d_y, 1;", "a register of another width"),
        ("bra NOWHERE;", "no label NOWHERE"),
        ("ld.b32 %x, [%d_y];", "generic addresses"),
        ("mov.u32 %x, nothing;", "'nothing' is not declared"),
        ("ld.param.b32 %x, [other];", "no parameter 'other'"),
        ("bar.sync 1;", "only barrier 0"),
        ("ld.global.v2.b32 %x, [%d_y];", "1 registers"),
        ("wgmma.mma_async.sync.aligned.m64n9k16.f32.bf16.bf16 {%x}, %d_y, %d_y, 1, 1, 1, 0, 0;", "unknown instruction"),
        ("add.s32 %x, %y", "expected ',' or ';'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(line: str, message: str) -> None:
    with pytest.raises(PtxRefused, match=message):
        PtxModule(kernel(line))


def test_paths_meet_before_an_instruction_of_whole_warps() -> None:
    """Even where the rarer path lies behind the function's end."""
    lines = """and.b32 %odd, %a, 3; setp.eq.s32 %p, %odd, 3; @%p bra RARE; add.s32 %y, %a, 1;
BACK:
    shfl.sync.bfly.b32 %x, %y, 1, 31, -1; bra STORE;
RARE:
    setp.gt.s32 %pg, %a, 0; @%pg bra RARER; mov.b32 %y, 5; bra BACK;
RARER:
    mov.b32 %y, 6; bra BACK;
STORE:"""
    a = words()
    y = np.where(a % 4 == 3, np.where(a > 0, 6, 5), a + 1)
    assert np.array_equal(per_thread(lines, a, result=np.int32), y.reshape(-1, 2)[:, ::-1].reshape(-1))
