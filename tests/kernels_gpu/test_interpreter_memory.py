"""The interpreter finds accesses outside arguments, races, what is never written, and what depends on order."""

import itertools
import re
from collections.abc import Callable

import pytest
import torch
from support.triton_interpreter import RaceError, launch, load_kernels

kernels = load_kernels(
    """
import triton
import triton.language as tl

@triton.jit
def copy(x, o, N, B: tl.constexpr, MASKED: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    if MASKED:
        tl.store(o + i, tl.load(x + i, mask=i < N, other=0), mask=i < N)
    else:
        tl.store(o + i, tl.load(x + i))

@triton.jit
def fill(o, FIRST, LAST, STEP: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * STEP + tl.arange(0, B)
    tl.store(o + i, tl.program_id(0).to(tl.float32), mask=(i >= FIRST) & (i < LAST))

@triton.jit
def load_without_other(x, o, N, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o + i, tl.load(x + i, mask=i < N))

@triton.jit
def through_table(table, o, B: tl.constexpr):
    i = tl.arange(0, B)
    x = tl.load(table + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    tl.store(o + tl.program_id(0) * B + i, tl.load(x + i))

@triton.jit
def neighbour(x, o, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, i.to(tl.float32))
    tl.store(x + i, tl.load(o + i + B, mask=i + B < B * tl.num_programs(0), other=0))

@triton.jit
def shift_in_place(x, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(x + i, tl.load(x + (i + B) % (B * tl.num_programs(0))))

@triton.jit
def reads_back(o, count, B: tl.constexpr, BETWEEN: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, i.to(tl.float32))
    if BETWEEN == "barrier":
        tl.debug_barrier()
    elif BETWEEN != "":
        tl.atomic_add(count, 1, sem=BETWEEN)
    tl.store(o + i, tl.load(o + (i ^ 1)) + 1)

@triton.jit
def one_address(o, B: tl.constexpr, SAME: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o + i * 0, i * 0 if SAME else i)

@triton.jit
def last_arriver(x, parts, total, count, B: tl.constexpr, SEM: tl.constexpr):
    i = tl.arange(0, B)
    p = tl.program_id(0)
    tl.store(parts + p, tl.sum(tl.load(x + p * B + i), 0))
    before = tl.atomic_add(count, 1, sem=SEM)
    if before == tl.num_programs(0) - 1:
        tl.store(total, tl.sum(tl.load(parts + tl.arange(0, 16)), 0))
        tl.store(count, 0)

@triton.jit
def waits(flag, o):
    if tl.program_id(0) == 0:
        tl.atomic_poll(flag, 1)
        tl.store(o, 1)
    else:
        tl.atomic_xchg(flag, 1)

@triton.jit
def spins(flag, o):
    if tl.program_id(0) == 0:
        while tl.atomic_add(flag, 0) == 0:
            pass
        tl.store(o, 1)
    else:
        tl.atomic_xchg(flag, 1)

@triton.jit
def atomics(x, o, OP: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    value = tl.load(x + i)
    to = o + i % 4
    if OP == "add": tl.atomic_add(to, value)
    elif OP == "max": tl.atomic_max(to, value)
    elif OP == "min": tl.atomic_min(to, value)
    elif OP == "or": tl.atomic_or(to, value)
    elif OP == "xor": tl.atomic_xor(to, value)
    elif OP == "and": tl.atomic_and(to, value)

@triton.jit
def first_wins(o, seen):
    old = tl.atomic_cas(o, 0, tl.program_id(0) + 1)
    tl.store(seen + tl.program_id(0), old)

@triton.jit
def notes_order(o, count):
    tl.store(o + tl.program_id(0), tl.atomic_add(count, 1))
"""
)


def test_a_load_beyond_the_end_names_kernel_program_argument_and_element() -> None:
    x, o = torch.zeros(1000), torch.zeros(2048)
    told = r"copy, program \(3, 0, 0\): load of element 1023 of x \(float32\[1000\]\), which has 1000"
    with pytest.raises(IndexError, match=told):
        launch(kernels.copy, 4, x, o, 1000, 256, False)


def test_a_store_before_the_start_or_beyond_a_view_is_found_though_memory_is_there() -> None:
    whole = torch.zeros(3, 256)
    with pytest.raises(IndexError, match=r"store of element 511 of o"):
        launch(kernels.copy, 2, torch.zeros(512), whole[1], 512, 256, False)
    launch(kernels.copy, 1, torch.ones(256), whole[1], 256, 256, False)
    assert whole.sum(1).tolist() == [0, 256, 0]
    with pytest.raises(IndexError, match=r"load of element -1 of x"):
        launch(
            load_kernels(
                """
import triton
import triton.language as tl
@triton.jit
def before(x, o):
    tl.store(o, tl.load(x - 1))
"""
            ).before,
            1,
            whole[1],
            torch.zeros(1),
        )


def test_masked_lanes_may_lie_anywhere() -> None:
    x, o = torch.randn(1000), torch.zeros(1000)
    launch(kernels.copy, 4, x, o, 1000, 256, True).assert_written_once(o)
    assert torch.equal(x, o)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_masked_lanes_without_other_are_nan(dtype: torch.dtype) -> None:
    o = torch.zeros(16).to(dtype)
    launch(kernels.load_without_other, 1, torch.ones(10).to(dtype), o, 10, 16)
    assert (o[:10].float() == 1).all() and o[10:].float().isnan().all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
def test_masked_integers_without_other_are_no_small_numbers(dtype: torch.dtype) -> None:
    o = torch.zeros(16, dtype=dtype)
    launch(kernels.load_without_other, 1, torch.ones(10, dtype=dtype), o, 10, 16)
    assert (o[10:].long().abs() > 80).all()


def test_pointers_read_from_memory_reach_what_is_declared() -> None:
    tensors = [torch.randn(16), torch.randn(16)]
    table, o = torch.tensor([tensor.data_ptr() for tensor in tensors]), torch.zeros(2, 16)
    launch(kernels.through_table, 2, table, o, 16, reachable=tensors)
    assert torch.equal(o, torch.stack(tensors))
    with pytest.raises(IndexError, match="16 of 16 addresses outside every argument"):
        launch(kernels.through_table, 2, table, o, 16, reachable=tensors[:1])


@pytest.mark.parametrize(("start", "offset"), [(1, 0), (0, 1), (0, 2)])
def test_a_misaligned_access_is_found(start: int, offset: int) -> None:
    cast = load_kernels(
        """
import triton
import triton.language as tl
@triton.jit
def words(x, o, OFFSET: tl.constexpr):
    i = tl.arange(0, 16)
    tl.store(o + i, tl.load((x + OFFSET).to(tl.pointer_type(tl.int32)) + i))
"""
    )
    data = torch.zeros(68, dtype=torch.uint8)[start:]
    with pytest.raises(IndexError, match="not aligned"):
        launch(cast.words, 1, data, torch.zeros(16, dtype=torch.int32), offset)


def test_elements_never_written_are_counted() -> None:
    o = torch.zeros(10, 10)
    done = launch(kernels.fill, 2, o, 3, 97, 64, 64)
    with pytest.raises(AssertionError, match=r"6 of 100 elements of o .* never written, the first at \(0, 0\)"):
        done.assert_written(o)
    done.assert_written_once(o[1:9], o[:, 4:7].t())


def test_elements_written_by_two_programs_are_races_or_counted_when_meant() -> None:
    o = torch.zeros(100)
    with pytest.raises(RaceError, match=r"writes element \d+ of o .* program \(\d, 0, 0\) wrote in the same launch"):
        launch(kernels.fill, 3, o, 0, 100, 32, 64)
    done = launch(kernels.fill, 3, o, 0, 100, 32, 64, unordered={"o"})
    done.assert_written(o)
    with pytest.raises(AssertionError, match=r"64 of 100 elements of o .* several programs"):
        done.assert_written_once(o)


@pytest.mark.parametrize("order", ["forward", "backward", 1, 2, 3, None])
def test_reading_what_another_program_writes_is_a_race_in_any_order(order: int | None) -> None:
    with pytest.raises(RaceError, match=r"element \d+ of o .* program \(\d, 0, 0\) (wrote|read) in the same launch"):
        launch(kernels.neighbour, 4, torch.zeros(64), torch.zeros(64), 16, order=order)
    with pytest.raises(RaceError, match=r"element \d+ of x .* program \(\d, 0, 0\) (wrote|read) in the same launch"):
        launch(kernels.shift_in_place, 4, torch.zeros(64), 16, order=order)


@pytest.mark.parametrize("between", ["barrier", "acq_rel", "acquire", "release"])
def test_a_program_reads_back_what_it_stored_behind_a_barrier(between: str) -> None:
    o = torch.zeros(64)
    launch(kernels.reads_back, 4, o, torch.zeros(1, dtype=torch.int32), 16, between)
    assert torch.equal(o, (torch.arange(64) ^ 1).float() + 1)


@pytest.mark.parametrize("between", ["", "relaxed"])
def test_a_program_that_reads_back_what_it_stored_needs_a_barrier(between: str) -> None:
    with pytest.raises(RaceError, match="which it wrote with no barrier between"):
        launch(kernels.reads_back, 4, torch.zeros(64), torch.zeros(1, dtype=torch.int32), 16, between)


def test_lanes_of_a_store_that_disagree_are_found() -> None:
    launch(kernels.one_address, 1, torch.zeros(1, dtype=torch.int32), 16, True)
    with pytest.raises(IndexError, match="different values for one element"):
        launch(kernels.one_address, 1, torch.zeros(1, dtype=torch.int32), 16, False)


@pytest.mark.parametrize("order", ["forward", "backward", *range(5)])
def test_the_last_to_arrive_reads_what_all_wrote(order: int) -> None:
    x, parts, total = torch.randn(16, 32), torch.full((16,), torch.nan), torch.zeros(1)
    count = torch.zeros(1, dtype=torch.int32)
    launch(kernels.last_arriver, 16, x, parts, total, count, 32, "acq_rel", order=order).assert_written(parts, total)
    assert count.item() == 0
    torch.testing.assert_close(total[0], x.sum())


@pytest.mark.parametrize("semantic", ["relaxed", "release", "acquire"])
def test_the_last_to_arrive_must_release_and_acquire(semantic: str) -> None:
    x, count = torch.randn(16, 32), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(RaceError, match="reads element"):
        launch(kernels.last_arriver, 16, x, torch.zeros(16), torch.zeros(1), count, 32, semantic)


def test_waiting_for_another_program_is_refused_where_it_would_hang() -> None:
    flag, o = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    launch(kernels.waits, 2, flag, o, order="backward")
    with pytest.raises(RuntimeError, match="no program before it wrote"):
        launch(kernels.waits, 2, flag.zero_(), o, order="forward")


def test_a_loop_that_waits_for_another_program_ends() -> None:
    flag, o = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    launch(kernels.spins, 2, flag, o, order="backward")
    with pytest.raises(RuntimeError, match="does it wait in a loop"):
        launch(kernels.spins, 2, flag.zero_(), o, order="forward")


FOLDED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "add": lambda rows: rows.sum(0), "max": lambda rows: rows.amax(0), "min": lambda rows: rows.amin(0),
}  # fmt: skip


WHOLE = [torch.int32, torch.int64, torch.float32]


@pytest.mark.parametrize(
    ("operation", "dtype"),
    [*itertools.product(FOLDED, WHOLE), ("add", torch.bfloat16), ("add", torch.float16)],
    ids=str,
)
def test_atomics_fold_all_programs_values(operation: str, dtype: torch.dtype) -> None:
    x = torch.randint(-8, 8, (8, 16)).to(dtype)
    o = torch.zeros(4, dtype=dtype)
    launch(kernels.atomics, 8, x, o, operation, 16)
    rows = torch.cat([torch.zeros(1, 4), x.reshape(-1, 4).float()])
    assert torch.equal(o.float(), FOLDED[operation](rows))


@pytest.mark.parametrize("operation", ["or", "xor", "and"])
def test_atomics_on_bits(operation: str) -> None:
    x = torch.randint(0, 1 << 30, (32,), dtype=torch.int32)
    o = torch.full((4,), (1 << 31) - 1, dtype=torch.int32)
    wanted = o.clone()
    for row in x.reshape(-1, 4):
        wanted = getattr(wanted, f"__{operation}__")(row)
    launch(kernels.atomics, 2, x, o, operation, 16)
    assert torch.equal(o, wanted)


def test_one_program_wins_a_compare_and_swap() -> None:
    o, seen = torch.zeros(1, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    launch(kernels.first_wins, 8, o, seen)
    assert sorted(seen.tolist()) == [0] + [o.item()] * 7


def order_of(order: int | str | None) -> list[int]:
    o = torch.zeros(12, dtype=torch.int32)
    launch(kernels.notes_order, 12, o, torch.zeros(1, dtype=torch.int32), order=order)
    return o.tolist()


def test_programs_run_in_the_order_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert order_of("forward") == list(range(12)) and order_of("backward") == list(range(12))[::-1]
    assert order_of(7) == order_of(7) != order_of(8)
    by_default = order_of(None)
    told = re.search(r"notes_order: 12 programs, order=(\d+)", capsys.readouterr().out)
    assert told is not None and by_default == order_of(int(told[1])) != order_of(None)


def test_a_failure_tells_the_order_that_repeats_it() -> None:
    with pytest.raises(IndexError) as failure:
        launch(kernels.copy, 4, torch.zeros(1000), torch.zeros(1024), 1000, 256, False, order=5)
    assert failure.value.__notes__ == ["copy: program (3, 0, 0) of grid (4, 1, 1), programs in order 5"]


def test_subscribing_a_kernel_launches_it_checked() -> None:
    with pytest.raises(IndexError):
        kernels.copy[(4,)](torch.zeros(1000), torch.zeros(1024), 1000, B=256, MASKED=False, num_warps=4)
    o = torch.zeros(1024)
    kernels.copy[lambda given: (1024 // given["B"],)](torch.ones(1024), o, 1024, B=256, MASKED=False).assert_written(o)
