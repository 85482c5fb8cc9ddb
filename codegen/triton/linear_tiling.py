"""The tiles of linears in matrix units, by fixed rules over what they need of a multiprocessor."""

from llmc.codegen.target import Target
from llmc.codegen.triton.linear_formats import Form
from llmc.codegen.triton.linear_rows import Owned
from llmc.codegen.triton.linear_tiles import Tiling

GEMV_ROWS = 3
"""The most rows that the kernels for ordinary lanes are made for."""
WIDTHS = (8, 16, 32, 64)
"""Rows of activations that tiles are made for: the least that matrix units take, and its doubles."""
FUSED = 16
"""Up to so many rows kernels read activations as they are; for more, a kernel before them rounds and scales rows."""

SHARED = {"sm_80": 160 << 10, "sm_89": 96 << 10, "sm_90": 224 << 10, "sm_100": 224 << 10}
"""Bytes of shared memory that a program can have."""
WARPS = 4


def flat_tiling(form: Form, owned: Owned, rows: int, k: int, target: Target, *, ready: bool) -> Tiling:
    """The tile for up to `rows` rows: 32 rows of the weight, 16 where there would be too few programs."""
    wide = 32 // owned.sets
    narrow = 16
    mine = wide if wide >= narrow and owned.count >= wide * target.cores else narrow
    units = form.units(k)
    batch = WARPS
    while form.bits <= 4 and form.unit < 256 and batch < 8 and units > batch:
        batch *= 2
    if form.multiplied == "float32":
        batch = 1
    unit = form.unit * (form.bits * mine * owned.sets + (16 if ready else 32) * rows) // 8
    room = SHARED.get(target.level, 64 << 10) // 2
    stages = max(2, min(5, room // (unit * batch)))
    return Tiling(mine, batch, rows, WARPS, stages)


def gemm_tiling(form: Form, owned: Owned, target: Target) -> Tiling:
    """The tile for many rows, of which several programs have a block each."""
    if form.multiplied == "float32":
        return Tiling(32, 1, 32, WARPS, 2, blocks=True)
    return Tiling(64 // owned.sets, 1, 64, WARPS, 3, blocks=True)
