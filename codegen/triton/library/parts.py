"""Sums of products that several programs share: each leaves its part, and the last to come adds them up in order."""

import triton
import triton.language as tl


@triton.jit
def store_part(parts, place, sums, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Leave sums [rows, columns] at `place`."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(parts + place * (ROWS * COLUMNS) + at, sums)


@triton.jit
def sum_of_parts(parts, place, step, COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum [rows, columns] of `COUNT` parts, from `place` on with `step` between them, in order."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.load(parts + place * (ROWS * COLUMNS) + at)
    for number in tl.static_range(1, COUNT):
        total += tl.load(parts + (place + number * step) * (ROWS * COLUMNS) + at)
    return total
