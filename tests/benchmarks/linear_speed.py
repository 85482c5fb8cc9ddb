"""Speed of linear layers of SmolLM2-135M and Llama-3.2-1B, against memory and peak measured in the same run.

    python tests/benchmarks/linear_speed.py [--threads 2] [--formats int4 int8 bf16] [--rows 1 8 64 512]

Bandwidth counts for few rows, whose weights come from memory; the peak of the multiply instruction for many. Each time
is that of the quickest of 40 rounds, and each result is checked.
"""

import argparse
import ctypes
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.native import compile_native

from llmc.codegen.cpp.function import FORMATS
from llmc.ir.packed_formats import pack, unpack

SHAPES = ((960, 576), (3072, 576), (576, 1536), (3072, 2048), (16384, 2048), (2048, 8192))
MEMORY = 256 << 20
"""Bytes that the copies of a weight take together: more than caches hold."""


def huge(size: int) -> np.ndarray:
    """Bytes in huge pages, where the system gives them."""
    pages = mmap.mmap(-1, (size // (2 << 20) + 2) * (2 << 20))
    pages.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(pages, np.uint8)
    first = -array.ctypes.data % (2 << 20)
    return array[first : first + size]


def copies_of(parts: Sequence[torch.Tensor], memory: np.ndarray) -> tuple[ctypes.Array[ctypes.c_void_p], int, int]:
    """As many copies of the parts as fit: their addresses, how many they are, and the bytes of one."""
    arrays = [part.contiguous().view(-1).view(torch.uint8).numpy() for part in parts]
    size = sum(-(-array.size // 4096) * 4096 for array in arrays)
    count = max(1, memory.size // size)
    addresses, place = [], 0
    for _ in range(count):
        for array in arrays:
            memory[place : place + array.size] = array
            addresses.append(memory.ctypes.data + place)
            place += -(-array.size // 4096) * 4096
        addresses += [0] * (3 - len(arrays))
    return (ctypes.c_void_p * len(addresses))(*addresses), count, sum(array.size for array in arrays)


def measure(format: str, threads: int, all_rows: Sequence[int]) -> None:
    """Prints the table of one format. Raises `AssertionError` where a result is wrong."""
    library = compile_native(Path(__file__).with_suffix(".cpp"), flags=(f"-DFORMAT={FORMATS[format]}",))
    for function in (library.read_speed, library.peak, library.linear_time):
        function.restype = ctypes.c_double
    memory = huge(MEMORY)
    memory[:] = 1
    address = memory.ctypes.data_as(ctypes.c_void_p)
    size = ctypes.c_int64(memory.size)

    def bandwidth() -> float:
        return float(library.read_speed(threads, address, size, ctypes.c_int64(16 << 20)))

    peak = library.peak(threads)
    print(f"{format}, {threads} threads: peak {peak / 1e9:.0f} G/s, reading {bandwidth() / 1e9:.1f} GB/s")
    for n, k in SHAPES:
        weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0)) / 50
        parts = pack(weight, format)
        addresses, count, bytes_ = copies_of(parts, memory)
        wide = unpack(parts, format, n, k)
        for rows in all_rows:
            # Whole numbers with 127 in every group are exact in all formats of activations.
            x = torch.randint(-127, 128, (rows, k), generator=torch.Generator().manual_seed(rows)).float()
            x[:, ::32] = 127
            y = torch.empty(rows, n)
            pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y))
            before = bandwidth()
            seconds = library.linear_time(threads, ctypes.c_int64(rows), n, k, count, addresses, *pointers)
            read = max(before, bandwidth())
            exact = x @ wide.T
            assert (y - exact).abs().max() <= 1e-4 * exact.abs().max(), f"{format} {n}x{k}, {rows} rows: wrong"
            speed = 2 * rows * n * k / seconds
            print(
                f"  {n:6}x{k:<5} {rows:4} rows {seconds * 1e6:9.1f} us {bytes_ / seconds / 1e9:6.1f} GB/s ="
                f" {bytes_ / seconds / read:5.2f} of reading {speed / 1e9:7.0f} G/s = {speed / peak:5.2f} of peak"
            )


def main() -> None:
    """Measures what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["int4", "int8", "bf16"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64, 512])
    chosen = parser.parse_args()
    for format in chosen.formats:
        measure(format, chosen.threads, chosen.rows)


if __name__ == "__main__":
    main()
