"""What is wrong with a kernel is an error that says where: each check on a kernel that breaks it, and on one that does
not."""

import numpy as np
import pytest
from support.ptx_text import GLOBAL_INDEX, at, kernel
from support.software_machine import DeviceMemory, KernelFailed, PtxModule

SHARED = ".extern .shared .align 16 .b8 memory[];"
SLOT = "mov.u32 %t, %tid.x; mov.b32 %base, memory; shl.b32 %s, %t, 2; add.s32 %s, %s, %base;"
"""%s: the address of a word of shared memory for each thread."""


def run(body: str, *arrays: np.ndarray, parameters: str = "", threads: int = 64, grid: int = 1, **options: int) -> None:
    """A kernel with 4 KiB of shared memory on arrays."""
    text = kernel(body, parameters=parameters, outside=SHARED)
    PtxModule(text).launch("test", [grid], threads, arrays, **{"shared": 4096, **options})


def fails(message: str, body: str, *arrays: np.ndarray, **options: object) -> None:
    """It is refused with a message."""
    with pytest.raises(KernelFailed, match=message):
        run(body, *arrays, **options)  # type: ignore[arg-type]


def test_memory_outside_all_allocations() -> None:
    load = f"{GLOBAL_INDEX} {at('from', '%index', 4)} ld.global.b32 %x, [%d_at];"
    store = load.replace("ld.global.b32 %x, [%d_at]", "st.global.b32 [%d_at], %index")
    for body in (load, store, load.replace("ld.global.b32 %x, [%d_at]", "red.global.add.u32 [%d_at], 1")):
        run(body, np.zeros(128, np.int32), parameters="from", grid=2)
        fails(
            r"^test: line (19|20): \S+: 4 bytes at address 0x\w+: in no allocation, thread 63, block \(1,0,0\)$",
            body, np.zeros(129, np.int32)[:127], parameters="from", grid=2,
        )  # fmt: skip
    copy = f"{SLOT} add.s64 %d_at, %d_from, 4; cp.async.ca.shared.global [%s], [%d_at], 4, %n; cp.async.wait_all;"
    run(f"mov.b32 %n, 0; {copy}", np.zeros(1, np.int32), parameters="from")
    fails("in no allocation", f"mov.b32 %n, 4; {copy}", np.zeros(1, np.int32), parameters="from")


def test_addresses_that_are_not_aligned() -> None:
    body = "ld.global.v4.b32 {%a, %b, %c, %e}, [%d_from+OFFSET];"
    run(body.replace("OFFSET", "16"), np.zeros(8, np.int32), parameters="from")
    fails("is not a multiple of 16 bytes", body.replace("OFFSET", "8"), np.zeros(8, np.int32), parameters="from")
    run(f"{SLOT} st.shared.b32 [%s], %t;")
    fails("is not a multiple of 8 bytes, thread 1,", f"{SLOT} mov.b64 %d_x, 0; st.shared.b64 [%s], %d_x;")


def test_shared_and_local_memory_have_an_end() -> None:
    fails("beyond that of the block, thread 0", f"{SLOT} st.shared.b32 [%s+4096], %t;")
    run(f"{SLOT} st.shared.b32 [%s], %t;", threads=1024)
    fails("beyond that of the block, thread 1023", f"{SLOT} st.shared.b32 [%s], %t;", threads=1024, shared=4092)
    run(".local .b8 depot[8]; mov.b32 %x, 4; st.local.b32 [depot+4], %x;")
    fails("beyond the memory of the thread", ".local .b8 depot[8]; mov.b32 %x, 4; st.local.b32 [depot+8], %x;")


def test_registers_that_were_not_written() -> None:
    body = "mov.u32 %t, %tid.x; setp.lt.u32 %p, %t, LIMIT; @%p mov.b32 %x, 1; add.s32 %y, %x, 1;"
    run(body.replace("LIMIT", "64"))
    fails("line 12: add.s32: register %x was not written, thread 5,", body.replace("LIMIT", "5"))
    fails("register %p was not written", "@%p bra END; mov.b32 %x, 1; END:")
    loop = "mov.b32 %i, 0; LOOP: @%p mov.b32 %y, %x; mov.b32 %x, 1; setp.eq.s32 %p, %i, %i;"
    fails("register %p", f"{loop} add.s32 %i, %i, 1; setp.lt.s32 %pl, %i, 3; @%pl bra LOOP;")


def test_shared_memory_that_nobody_wrote() -> None:
    run(f"{SLOT} st.shared.b32 [%s], %t; ld.shared.b32 %x, [%s];")
    fails("that nobody has written", f"{SLOT} st.shared.b16 [%s], %h; ld.shared.b32 %x, [%s];".replace("%h", "%t"))
    fails("that nobody has written", f"{SLOT} ld.shared.b32 %x, [%s];")
    fails("that nobody has written", f"{SLOT} atom.shared.add.u32 %x, [%s], 1;")


OTHER = "xor.b32 %o, %s, 128;"
"""%o: the word of a thread of the other warp."""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"st.shared.b32 [%s], %t; {OTHER} BARRIER ld.shared.b32 %x, [%o];", "another warp has written without"),
        (
            f"st.shared.b32 [%s], %t; bar.sync 0; {OTHER} ld.shared.b32 %x, [%o]; BARRIER st.shared.b32 [%s], %x;",
            "another warp has read without",
        ),
        (f"st.shared.b32 [%s], %t; {OTHER} BARRIER st.shared.b32 [%o], %t;", "another warp has written without"),
        (
            f"st.shared.v2.b32 [%base], {{%zero, %zero}}; bar.sync 0; {OTHER} ld.shared.b32 %x, [%base]; BARRIER"
            " setp.eq.s32 %p, %t, 33; @%p st.shared.b8 [%base+1], %t;",
            "another warp has read without",
        ),
        (
            "st.shared.b32 [%s], %t; bar.sync 0; atom.shared.add.u32 %x, [%base], 1; BARRIER"
            " ld.shared.b32 %x, [%base];",
            "another warp has written without",
        ),
    ],
)
def test_races_in_shared_memory(body: str, message: str) -> None:
    body = f"mov.b32 %zero, 0; {SLOT} {body}"
    run(body.replace("BARRIER", "bar.sync 0;"))
    fails(message, body.replace("BARRIER", ""))


def test_warps_may_write_the_same_value_to_the_same_place() -> None:
    run(f"{SLOT} st.shared.b32 [%base], 7;".replace(", 7", ", %seven").replace(SLOT, f"{SLOT} mov.b32 %seven, 7;"))
    same = f"{SLOT} mov.b32 %seven, 7; st.shared.b32 [%base], %seven;"
    run(f"{same} bar.sync 0; ld.shared.b32 %x, [%base];")
    fails("another warp has written", f"{same} ld.shared.b32 %x, [%base];")


COPY = f"{SLOT} mul.wide.u32 %d_by, %t, 4; add.s64 %d_at, %d_from, %d_by; cp.async.ca.shared.global [%s], [%d_at], 4;"


def test_copies_must_be_waited_for() -> None:
    given = np.arange(64, dtype=np.int32)
    done = f"{COPY} cp.async.commit_group; cp.async.wait_group 0;"
    run(f"{done} ld.shared.b32 %x, [%s]; {OTHER} bar.sync 0; ld.shared.b32 %x, [%o];", given, parameters="from")
    waiting = "that a copy still writes"
    fails(waiting, f"{COPY} bar.sync 0; ld.shared.b32 %x, [%s];", given, parameters="from")
    fails(waiting, f"{COPY} cp.async.wait_group 0; ld.shared.b32 %x, [%s];", given, parameters="from")
    fails(waiting, f"{COPY} cp.async.commit_group; cp.async.wait_group 1; ld.shared.b32 %x, [%s];", given,
          parameters="from")  # fmt: skip
    fails(waiting, f"{COPY} st.shared.b32 [%s], %t;", given, parameters="from")
    fails("another warp has written", f"{done} {OTHER} ld.shared.b32 %x, [%o];", given, parameters="from")
    used = f"st.shared.b32 [%s], %t; bar.sync 0; {OTHER} ld.shared.b32 %x, [%o];"
    fails("another warp has read", COPY.replace("cp.async", f"{used} cp.async"), given, parameters="from")


def test_barriers_are_for_all_threads() -> None:
    part = "mov.u32 %t, %tid.x; setp.lt.u32 %p, %t, 32;"
    run(f"{part} @%p bra NEXT; mov.b32 %x, 1; NEXT: bar.sync 0;")
    fails("a barrier that only 32 threads reach", f"{part} @%p bra END; bar.sync 0; END:")
    fails("a barrier when 32 threads have ended", f"{part} @%p ret; bar.sync 0;")
    fails("for some threads of those that are here", f"{part} @%p bar.sync 0;")
    fails(
        "a barrier while threads wait at that of line",
        f"{part} @%p bra NEXT; bar.sync 0; bra END; NEXT: bar.sync 0; END:",
    )


def test_lanes_that_are_not_there() -> None:
    half = "mov.u32 %t, %tid.x; and.b32 %l, %t, 31; setp.lt.u32 %p, %l, 16; @!%p bra END;"
    run(f"{half} shfl.sync.bfly.b32 %x, %t, 1, 31, 0xffff; END:")
    fails(
        "names the lanes 0xffffffff of its warp, here are 0xffff", f"{half} shfl.sync.bfly.b32 %x, %t, 1, 31, -1; END:"
    )
    fails("lane 16 is not there", f"{half} shfl.sync.bfly.b32 %x, %t, 16, 31, 0xffff; END:")
    fails("its own mask does not name", f"{half} redux.sync.add.s32 %x, %t, 0xfffe; END:")
    fails("names the lanes", f"{half} bar.warp.sync -1; END:")
    mma = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%t,%t,%t,%t}, {%t,%t,%t,%t}, {%t,%t}, {%t,%t,%t,%t};"
    fails("only 16 threads of warp 0", f"{half} {mma} END:")


def test_a_kernel_without_an_end() -> None:
    fails("has not ended after 1000 instructions", "LOOP: mov.b32 %x, 1; bra LOOP;", most_instructions=1000)


def test_launches_that_a_driver_would_refuse() -> None:
    made = PtxModule(kernel("mov.b32 %x, 1;", outside=SHARED, threads=64))
    made.launch("test", [1], 64, [])
    with pytest.raises(KernelFailed, match="blocks of 32 threads, it is made for 64"):
        made.launch("test", [1], 32, [])
    with pytest.raises(KernelFailed, match="other: no such function"):
        made.launch("other", [1], 64, [])
    with pytest.raises(KernelFailed, match="300000 bytes of shared memory"):
        made.launch("test", [1], 64, [], shared=300_000)
    with pytest.raises(KernelFailed, match="a grid that is too large"):
        made.launch("test", [1, 65536], 64, [])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.global.b32 [%d_own], %t; BARRIER ld.global.b32 %x, [%d_other];", "another warp has written it without"),
        ("ld.global.b32 %x, [%d_other]; BARRIER st.global.b32 [%d_own], %t;", "another warp has read it without"),
        ("st.global.b32 [%d_own], %t; BARRIER st.global.b32 [%d_other], %t;", "another warp has written it too"),
    ],
)
def test_races_in_the_memory_of_the_device(body: str, message: str) -> None:
    body = f"{SLOT} mul.wide.u32 %d_by, %t, 4; add.s64 %d_own, %d_to, %d_by; xor.b64 %d_by, %d_by, 128; {body}".replace(
        "xor.b64 %d_by, %d_by, 128;", "xor.b64 %d_by, %d_by, 128; add.s64 %d_other, %d_to, %d_by;"
    )
    run(body.replace("BARRIER", "bar.sync 0;"), np.zeros(64, np.int32), parameters="to")
    fails(message, body.replace("BARRIER", ""), np.zeros(64, np.int32), parameters="to")


def test_races_between_blocks() -> None:
    own = f"{GLOBAL_INDEX} {at('to', '%index', 4)} setp.eq.s32 %p, %thread, 0;"
    store, written = "st.global.b32 [%d_at], %index;", "another block of the launch has (written|read) it"
    for body, message in (
        (f"{store} bar.sync 0; @%p st.global.b8 [%d_to+300], %index;", written),
        (f"ld.global.b32 %x, [%d_to+12]; bar.sync 0; {store}", written),
        (f"{store} bar.sync 0; ld.global.b32 %x, [%d_to+12];", written),
    ):
        for seed in range(3):
            fails(message, f"{own} {body}", np.zeros(192, np.int32), parameters="to", grid=3, seed=seed)
    run(f"{own} st.global.b32 [%d_at], %index;", np.zeros(192, np.int32), parameters="to", grid=3)


LAST = f"""{GLOBAL_INDEX} {at("parts", "%index", 4)} STORE setp.eq.s32 %p, %thread, 0; mov.b32 %base, memory;
    @%p atom.global.gpu.acq_rel.add.u32 %x, [%d_count], 1; @%p st.shared.b32 [%base], %x; bar.sync 0;
    ld.shared.b32 %x, [%base]; setp.ne.s32 %pn, %x, 3; @%pn ret;
    xor.b32 %index, %index, 64; {at("parts", "%index", 4)} ld.global.b32 %x, [%d_at];
    mov.b32 %zero, 0; @%p st.global.b32 [%d_count], %zero;"""


def test_the_last_block_to_arrive_may_read_what_others_wrote() -> None:
    arrays = [np.zeros(4 * 64, np.int32), np.zeros(1, np.int32)]
    store = "st.global.b32 [%d_at], %index;"
    right, written = LAST.replace("STORE", f"{store} bar.sync 0;"), "another block of the launch has written it"
    for seed in range(4):
        run(right, *arrays, parameters="parts count", grid=4, seed=seed)
        assert arrays[1][0] == 0
        for wrong in (right.replace("acq_rel", "relaxed"), LAST.replace("STORE", store)):
            fails(written, wrong, *arrays, parameters="parts count", grid=4, seed=seed)
            arrays[1][0] = 0


@pytest.mark.parametrize("programmatic", [False, True])
def test_what_the_launch_before_wrote_is_waited_for(programmatic: bool) -> None:
    step = f"{GLOBAL_INDEX} {at('to', '%index', 4)} BEFORE ld.global.b32 %x, [%d_at]; add.s32 %x, %x, 1; AFTER"
    step += " st.global.b32 [%d_at], %x;"
    wait = "griddepcontrol.wait;"
    right = PtxModule(kernel(step.replace("BEFORE", wait).replace("AFTER", ""), parameters="to"))
    late = PtxModule(kernel(step.replace("AFTER", wait).replace("BEFORE", ""), parameters="to"))
    never = PtxModule(kernel(step.replace("AFTER", "").replace("BEFORE", ""), parameters="to"))
    found = np.zeros(128, np.int32)
    memory = DeviceMemory(found)
    for _ in range(3):
        right.launch("test", [2], 64, [found], memory=memory, programmatic=programmatic)
    assert (found == 3).all()
    if not programmatic:
        never.launch("test", [2], 64, [found], memory=memory)
        return
    with pytest.raises(
        KernelFailed, match=r"ld\.global\.b32: .* by the launch before, which this one has not waited for"
    ):
        late.launch("test", [2], 64, [found], memory=memory, programmatic=True)
    with pytest.raises(KernelFailed, match="ends without waiting for the launch before"):
        never.launch("test", [2], 64, [np.zeros(128, np.int32)], programmatic=True)
