"""Matrix instructions: fragments as the manual of PTX lays them out, written down here once more."""

import ctypes
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.software_cuda import numbers

Array = NDArray[np.generic]
KINDS = {
    "f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2,
    "s8": torch.int8, "u8": torch.uint8, "tf32": torch.float32,
}  # fmt: skip
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def matrix(kind: str, rows: int, columns: int, seed: int) -> tuple[Array, Array]:
    """[rows, columns] bits of elements, and their values as float64."""
    generator = torch.Generator().manual_seed(seed)
    if kind in ("s8", "u8"):
        low = -128 if kind == "s8" else 0
        drawn = torch.randint(low, low + 256, (rows, columns), generator=generator)
    else:
        drawn = torch.randn(rows, columns, generator=generator)
    values = drawn.to(KINDS[kind])
    if kind == "tf32":
        values = (values.view(torch.int32) & -8192).view(torch.float32)
    bits = values.view(BITS[values.element_size()]).numpy()
    return bits.view(f"u{bits.itemsize}"), values.double().numpy()


def registers(elements: NDArray[np.generic]) -> NDArray[np.uint32]:
    """[threads, elements] to [registers, threads]: the first element in the lowest bits of the first register."""
    return np.ascontiguousarray(np.ascontiguousarray(elements).view(np.uint32).T)


def of_a(bits: Array) -> NDArray[np.uint32]:
    """Elements of the thread in group g with number t in it: rows g and g + 8 in turn, columns in turn along k."""
    each = 4 // bits.itemsize
    return registers(
        np.array(
            [
                [
                    bits[lane // 4 + 8 * (register % 2), lane % 4 * each + i + 4 * each * (register // 2)]
                    for register in range(bits.shape[1] // (4 * each) * 2)
                    for i in range(each)
                ]
                for lane in range(32)
            ],
            bits.dtype,
        )
    )


def of_b(bits: Array) -> NDArray[np.uint32]:
    each = 4 // bits.itemsize
    return registers(
        np.array(
            [
                [
                    bits[lane % 4 * each + i + 4 * each * register, lane // 4]
                    for register in range(bits.shape[0] // (4 * each))
                    for i in range(each)
                ]
                for lane in range(32)
            ],
            bits.dtype,
        )
    )


def places_of_c(columns: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """For each accumulator the row and the column of it in each thread."""
    lane = np.arange(32)
    return [
        (lane // 4 + 8 * (at // 2), start + lane % 4 * 2 + at % 2)
        for start, at in product(range(0, columns, 8), range(4))
    ]


def address(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize(
    ("kind", "k"),
    [("f16", 8), ("f16", 16), ("bf16", 8), ("bf16", 16), ("tf32", 4), ("tf32", 8), ("s8", 16), ("s8", 32), ("u8", 32),
     ("e4m3", 32), ("e5m2", 32)],
)  # fmt: skip
def test_mma(kind: str, k: int) -> None:
    a_bits, a = matrix(kind, 16, k, 1)
    b_bits, b = matrix(kind, k, 8, 2)
    whole = kind in ("s8", "u8")
    c = np.random.default_rng(3).normal(0, 100, (16, 8)).astype(np.int32 if whole else np.float32)
    sums = "s32" if whole else "f32"
    given = np.stack([c[place].view(np.uint32) for place in places_of_c(8)])
    d = np.zeros_like(given)
    opcode = f"mma.sync.aligned.m16n8k{k}.row.col.{sums}.{kind}.{kind}.{sums}".encode()
    assert (
        numbers().run_mma(opcode, *(address(each) for each in (d, of_a(a_bits), of_b(b_bits), given))) == 16008000 + k
    )
    wanted = c + a @ b
    for found, place in zip(d.view(c.dtype), places_of_c(8), strict=True):
        np.testing.assert_allclose(found, wanted[place], rtol=1e-6, atol=0 if whole else 2e-5)


def test_mma_adds_into_its_own_registers_of_halves() -> None:
    a_bits, a = matrix("f16", 16, 16, 1)
    b_bits, b = matrix("f16", 16, 8, 2)
    c = np.random.default_rng(3).normal(0, 1, (16, 8)).astype(np.float16)
    lane = np.arange(32)
    d = np.stack(
        [
            np.ascontiguousarray(c[lane // 4 + 8 * half].reshape(32, 4, 2)[lane, lane % 4]).view(np.uint32)[:, 0]
            for half in range(2)
        ]
    )
    opcode = b"mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"
    assert numbers().run_mma(opcode, address(d), address(of_a(a_bits)), address(of_b(b_bits)), address(d))
    for half in range(2):
        found = d[half].copy().view(np.float16).reshape(32, 2)
        wanted = (c + a @ b)[lane // 4 + 8 * half].reshape(32, 4, 2)[lane, lane % 4]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_other_shapes_and_kinds_are_not_there() -> None:
    for opcode in (
        "m16n8k16.row.col.f32.tf32.tf32.f32",
        "m16n8k16.col.row.f32.f16.f16.f32",
        "m8n8k16.row.col.s32.s8.s8.s32",
        "m16n8k16.row.col.f32.f16.bf16.f32",
        "m16n8k32.row.col.f32.s8.s8.f32",
    ):
        assert not numbers().run_mma(f"mma.sync.aligned.{opcode}".encode(), None, None, None, None), opcode


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_move_between_memory_and_registers(count: int, transposed: bool) -> None:
    memory = np.random.default_rng(1).integers(0, 2**16, (count, 8, 8), np.uint16)
    held = np.zeros((count, 32), np.uint32)
    tail = f"sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16"
    assert numbers().move_matrices(f"ldmatrix.{tail}".encode(), address(held), address(memory)) == count
    seen = memory.transpose(0, 2, 1) if transposed else memory
    np.testing.assert_array_equal(held.view(np.uint16).reshape(count, 8, 8), seen)
    back = np.zeros_like(memory)
    assert numbers().move_matrices(f"stmatrix.{tail}".encode(), address(held), address(back)) == count
    np.testing.assert_array_equal(back, memory)


def exchanged(offset: int, width: int) -> int:
    """The place of a byte in memory whose lines of `width` bytes are exchanged in units of 16."""
    unit = {16: 0, 32: 1, 64: 3, 128: 7}[width]
    return offset ^ (offset >> 7 & unit) << 4


def shared_along(bits: Array, width: int, start: int) -> tuple[bytearray, int]:
    """A factor [lines, k] whose lines run along k in shared memory, and its descriptor."""
    memory = bytearray(1 << 16)
    lines, line = bits.shape[0], bits.shape[1] * bits.itemsize
    leading, stride = (lines * 16, 128) if width == 16 else (0, 8 * width)
    for row, at in product(range(lines), range(line)):
        block = row // 8 * stride + (
            row % 8 * 16 + at // 16 * leading + at % 16 if width == 16 else row % 8 * width + at
        )
        memory[exchanged(start + block, width)] = bits[row].tobytes()[at]
    mode = {16: 0, 128: 1, 64: 2, 32: 3}[width]
    return memory, start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62


def shared_across(bits: Array, width: int) -> tuple[bytearray, int]:
    """The same factor with lines across k, blocks of 8 lines of `width` bytes."""
    memory, (lines, depth) = bytearray(1 << 16), bits.shape
    each, size = width // 2, width * 8
    stride, leading = size, size * (depth // 8)
    for row, k in product(range(lines), range(depth)):
        offset = row // each * leading + k // 8 * stride + k % 8 * width + row % each * 2
        place = exchanged(offset, width)
        memory[place : place + 2] = bits[row, k].tobytes()
    return memory, leading >> 4 << 16 | stride >> 4 << 32 | {128: 1, 64: 2, 32: 3}[width] << 62


def run(
    kind: str, n: int, a: Array | None, descriptors: tuple[int, int], memory: bytes, flags: int, d: NDArray[np.uint32]
) -> None:
    whole = kind in ("s8", "u8")
    k = 32 // np.dtype(f"u{torch.empty(0, dtype=KINDS[kind]).element_size()}").itemsize
    opcode = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{'s32' if whole else 'f32'}.{kind}.{kind}".encode()
    found = numbers().run_wgmma(
        opcode, address(d), None if a is None else address(a), *(ctypes.c_uint64(each) for each in descriptors), flags,
        memory, len(memory),
    )  # fmt: skip
    assert found == n // 2


def result(d: NDArray[np.uint32], n: int, whole: bool) -> Array:
    """[64, n] out of the registers of 4 warps."""
    found = np.zeros((64, n), np.int32 if whole else np.float32)
    for warp, (register, place) in product(range(4), enumerate(places_of_c(n))):
        found[place[0] + 16 * warp, place[1]] = d[register, 32 * warp : 32 * warp + 32].view(found.dtype)
    return found


@pytest.mark.parametrize(
    ("kind", "n"), [("bf16", 64), ("f16", 8), ("tf32", 16), ("e4m3", 32), ("s8", 16), ("bf16", 256)]
)
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_wgmma_of_shared_memory(kind: str, n: int, width: int) -> None:
    k = 32 // torch.empty(0, dtype=KINDS[kind]).element_size()
    a_bits, a = matrix(kind, 64, k, 1)
    b_bits, b = matrix(kind, n, k, 2)
    inner = 32 if width == 128 else 0  # the second of four steps along k in blocks of 128 bytes
    a_memory, a_descriptor = shared_along(a_bits, width, inner)
    b_memory, b_descriptor = shared_along(b_bits, width, inner)
    moved = b_descriptor + (1 << 12)  # b lies 64 KB behind a
    d = np.zeros((n // 2, 128), np.uint32)
    run(kind, n, None, (a_descriptor, moved), bytes(a_memory + b_memory), 0, d)
    found, whole = result(d, n, kind in ("s8", "u8")), kind in ("s8", "u8")
    np.testing.assert_allclose(found, a @ b.T, rtol=1e-5, atol=0 if whole else 1e-5)
    run(kind, n, None, (a_descriptor, moved), bytes(a_memory + b_memory), 1 | 2, d)  # plus a * b with a negated
    np.testing.assert_allclose(result(d, n, whole), 0 * found, atol=0 if whole else 1e-5)


@pytest.mark.parametrize("width", [32, 64, 128])
def test_wgmma_of_lines_across_k(width: int) -> None:
    n = 128
    a_bits, a = matrix("bf16", 64, 16, 1)
    b_bits, b = matrix("bf16", n, 16, 2)
    a_memory, a_descriptor = shared_across(a_bits, width)
    b_memory, b_descriptor = shared_across(b_bits, width)
    d = np.zeros((n // 2, 128), np.uint32)
    run("bf16", n, None, (a_descriptor, b_descriptor + (1 << 12)), bytes(a_memory + b_memory), 8 | 16, d)
    np.testing.assert_allclose(result(d, n, False), a @ b.T, rtol=1e-5, atol=1e-5)


def test_wgmma_with_a_factor_in_registers() -> None:
    a_bits, a = matrix("bf16", 64, 16, 1)
    b_bits, b = matrix("bf16", 64, 16, 2)
    memory, descriptor = shared_along(b_bits, 128, 0)
    held = np.concatenate([of_a(a_bits[16 * warp : 16 * warp + 16]) for warp in range(4)], axis=1)
    d = np.zeros((32, 128), np.uint32)
    run("bf16", 64, held, (0, descriptor), bytes(memory), 0, d)
    np.testing.assert_allclose(result(d, 64, False), a @ b.T, rtol=1e-5, atol=1e-5)


def test_wgmma_says_that_memory_is_refused() -> None:
    d = np.zeros((32, 128), np.uint32)
    opcode = b"wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16"
    descriptor = ctypes.c_uint64(1 << 62 | 64 << 32)
    assert numbers().run_wgmma(opcode, address(d), None, descriptor, descriptor, 0, bytes(64), 64) == -1
