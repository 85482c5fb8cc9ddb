"""The tiles of linears in matrix units, by fixed rules over what they need of a multiprocessor."""

import math

from llmc.codegen.target import Target
from llmc.codegen.triton.linear_formats import Form
from llmc.codegen.triton.linear_rows import Owned
from llmc.codegen.triton.linear_single import COLUMNS, SingleTiling, joined
from llmc.codegen.triton.linear_tiles import Tiling

GEMV_ROWS = 3
"""The most rows that the kernels for ordinary lanes are made for."""
WIDTHS = (8, 16, 32, 64)
"""Rows of activations that tiles are made for: the least that matrix units take, and its doubles."""
GEMM_FROM = 2
"""The fewest rows that blocks of tiles may serve."""
LIBRARY_FROM = 2
"""The fewest rows that a library's product may serve."""
FUSED = 16
"""Up to so many rows kernels read activations as they are; for more, a kernel before them rounds and scales rows."""

SHARED = {"sm_80": 160 << 10, "sm_89": 96 << 10, "sm_90": 224 << 10, "sm_100": 224 << 10}
"""Bytes of shared memory that a program can have."""
WARPS = 4
UNDER_WAY = 48 << 10
"""Bytes of weights that a multiprocessor should have asked for."""
BUSY = 0.7
"""The least share of the multiprocessors that must have a program."""
SPREAD = 16
"""What a program does for its row of activations, in rows of the weight that take as many instructions."""


def flat_tiling(form: Form, owned: Owned, rows: int, k: int, target: Target, *, ready: bool) -> Tiling:
    """The tile for up to `rows` rows: as many rows of the weight, up to 64 in all, as leave every multiprocessor a
    program; formats that fit a byte twice need the most, since what is done to activations counts there too.
    """
    widest = (64 if form.bits <= 4 and rows <= FUSED else 32) // owned.sets
    mine = widest
    while mine > 16 and owned.count < 0.9 * mine * target.cores:
        mine //= 2
    units = form.units(k)
    # Loads into shared memory need 4 bytes for each thread: of zeros, a short for each unit and row, or of a norm's
    # weight, a bfloat16 for each column of a piece.
    batch = 2 * WARPS if form.strips and form.unit <= 128 else WARPS
    if form.bits <= 4 and form.unit < 128 and mine < 32:
        batch = 4 * WARPS
    while batch > WARPS and batch >= 2 * units:
        batch //= 2
    if form.multiplied == "float32":
        batch = 1
    unit = form.unit * (form.bits * mine * owned.sets + (16 if ready else 32) * rows) // 8
    room = SHARED.get(target.level, 64 << 10) // 2
    stages = max(2, min(5, room // (unit * batch)))
    return Tiling(mine, batch, rows, WARPS, stages)


def gemm_tiling(form: Form, owned: Owned, target: Target) -> Tiling:
    """The tile for many rows, of which several programs have a block each: 128 rows of the weight by 64, where 512
    rows of activations make a program for every multiprocessor of them, else 64 by 64.
    """
    if form.multiplied == "float32":
        return Tiling(32, 1, 32, WARPS, 2, blocks=True)
    large = 128 // owned.sets
    if owned.count * 512 // (large * 64) >= 0.9 * target.cores:
        return Tiling(large, 1, 64, 2 * WARPS, 3, blocks=True)
    return Tiling(64 // owned.sets, 1, 64, WARPS, 3, blocks=True)


def single_tiling(form: Form, owned: Owned, k: int, target: Target) -> SingleTiling:
    """The tile for one row of activations: as many rows of the weight as make the busiest multiprocessor's work the
    least, and as many stages as keep enough of the weight on its way. Where there is about one program for each
    multiprocessor and columns enough, it has twice the warps.
    """
    count, units = owned.count * owned.sets, form.units(k)
    most = 64 if form.bits <= 4 else 32
    sizes = [size for size in (64, 32, 16) if size <= most and (size == 16 or count >= BUSY * size * target.cores)]
    rows = min(sizes, key=lambda size: math.ceil(count / (size * target.cores)) * (size + SPREAD))
    programs = max(1.0, count / (rows * target.cores))
    runs = -(-units // joined(form))
    warps = 2 * WARPS if programs < 2 and runs >= 4 * WARPS else WARPS
    batch = warps
    while batch > 2 and batch >= 2 * runs:
        batch //= 2
    run = joined(form) * form.unit
    tile = batch * run * rows * form.bits // 8
    stage = tile + batch * (run * 6 + rows * COLUMNS * 4)  # the row and a norm's weight; scales and zeros
    room = SHARED.get(target.level, 64 << 10) // min(2, math.ceil(programs)) - batch * run * COLUMNS * 2
    wanted = 2 + math.ceil(UNDER_WAY / (tile * programs))
    return SingleTiling(rows, batch, warps, max(2, min(wanted, room // stage + 1, 1 + -(-runs // batch))))
