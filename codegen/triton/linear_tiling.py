"""The tiles of linears in matrix units, by fixed rules over what they need of a multiprocessor."""

import itertools
import math

from llmc.codegen.layout import View
from llmc.codegen.regions import Linear
from llmc.codegen.target import Target
from llmc.codegen.triton.linear_formats import Form
from llmc.codegen.triton.linear_rows import Owned
from llmc.codegen.triton.linear_single import COLUMNS, SingleTiling, joined
from llmc.codegen.triton.linear_tiles import MANY, Tiling

GEMV_ROWS = 3
"""The most rows that the kernels for ordinary lanes are made for."""
LONG = 4096
"""Columns from which on what norms of so many rows need does not fit into registers."""
WIDTHS = (8, 16, 32, 64)
"""Rows of activations that tiles are made for: the least that matrix units take, and its doubles."""
GEMM_FROM = 2
"""The fewest rows that blocks of tiles may serve."""
LIBRARY_FROM = 2
"""The fewest rows that a library's product may serve."""
FUSED = 16
"""Up to so many rows kernels read activations as they are; for more, a kernel before them rounds and scales rows."""
FUSED_PACKED = 8
"""The same for weights of few bits, beside which activations are more of the work."""
LARGE = 1 << 24
"""Elements of a packed weight from which on a kernel that makes norms of two rows ready costs less than it saves."""

SPLITS = (2, 4, 8)
"""Programs that may share the columns of a tile."""
CACHED = 60e9
"""Bytes a second that a multiprocessor reads from the second cache (assumed: 32 a cycle, half of what its port takes,
at nearly 2 GHz)."""
MERGE = 2e-6
"""Seconds until the last program of a tile has the sums of the others (assumed: a fence, an atomic and a read that wait
for each other, 0.7 us each)."""
WORTHWHILE = 0.9
"""Part of the time without them that larger tiles must take at most."""

SHARED = {"sm_80": 96 << 10, "sm_89": 96 << 10, "sm_90": 224 << 10, "sm_100": 224 << 10}
"""Bytes of shared memory that a program can have. What is made for sm_80 also runs on 8.6 and, as PTX, on 12.0, where a
program has less of it than on 8.0.
"""
ROOM = {"sm_80": 152 << 10}
"""Bytes of shared memory for the tiles of all programs of a multiprocessor, where one cannot have nearly all of it."""
LATENCY = 0.9e-6
"""Seconds that memory takes to answer while it is busy."""
WARPS = 4
UNDER_WAY = 48 << 10
"""Bytes of weights that a multiprocessor should have asked for."""
BUSY = 0.7
"""The least share of the multiprocessors that must have a program."""
SPREAD = 16
"""What a program does for its row of activations, in rows of the weight that take as many instructions."""


def fused_rows(region: Linear, form: Form) -> int:
    """Up to how many rows of activations kernels read them as they are."""
    if form.bits >= 16:
        return FUSED
    return FUSED_PACKED if isinstance(region.source, View) or region.n * region.k < LARGE else 1


def lane_rows(region: Linear) -> int:
    """Up to how many rows of activations kernels for ordinary lanes are made."""
    return GEMV_ROWS if isinstance(region.source, View) or region.k < LONG else GEMV_ROWS - 1


def flat_tiling(
    form: Form, owned: Owned, rows: int, k: int, target: Target, *, ready: bool, divisible: bool = False
) -> Tiling:
    """The tile for up to `rows` rows: as many rows of the weight, up to 64 in all, as leave most multiprocessors a
    program. Larger tiles, whose columns several programs share, where they take clearly less time by estimate.

    divisible: whether programs may share columns.
    """
    large = ready and (form.bits <= 4 or (form.bits == 6 and (form.groups < 8 or rows > 8)))
    widest = (64 if large else 32) // owned.sets
    mine = widest
    while mine > 16 and owned.count < BUSY * mine * target.cores:
        mine //= 2
    whole = _flat(form, owned, rows, k, target, mine, 1, ready=ready)
    if not divisible or target.kind != "cuda" or form.multiplied == "float32":
        return whole
    shared = [
        _flat(form, owned, rows, k, target, mine, splits, ready=ready)
        for mine in (16, 32, 64)
        for splits in SPLITS
        if mine <= widest and form.units(k) % splits == 0
    ]
    shared = [one for one in shared if form.units(k) // one.splits % (one.batch * one.joined) == 0]

    def seconds(tiling: Tiling) -> float:
        return _seconds(form, owned, k, target, tiling, ready=ready)

    best = min(shared, key=seconds, default=whole)
    return best if seconds(best) < WORTHWHILE * seconds(whole) else whole


def _seconds(form: Form, owned: Owned, k: int, target: Target, tiling: Tiling, *, ready: bool) -> float:
    """What a launch takes by estimate: reading the weight from memory, or that and activations from the second cache,
    by the multiprocessors that have a program.
    """
    programs = -(-owned.count // tiling.owned) * tiling.splits
    weight = form.tile_bytes(form.units(k) * owned.count * owned.sets)
    activations = programs * tiling.rows * k // tiling.splits * (2 if ready else 4)
    waves = math.ceil(programs / target.cores)
    cached = (weight + activations) / programs * waves / CACHED
    memory = weight / target.bandwidth.value
    merged = MERGE + 8 * tiling.splits * owned.count * owned.sets * tiling.rows / (CACHED * target.cores)
    return max(memory, cached) + (merged if tiling.splits > 1 else 0.0)


def _flat(
    form: Form, owned: Owned, rows: int, k: int, target: Target, mine: int, splits: int, *, ready: bool
) -> Tiling:
    """The tile of so many indices for programs that share columns; as many stages as keep enough of the weight on its
    way, if there is room for the activations, too.
    """
    units = form.units(k) // splits
    batch = 2 * WARPS if form.strips and form.unit_bytes <= 64 else WARPS
    if form.bits <= 4 and form.unit < 128 and (not ready or mine * owned.sets == 16):
        batch = 4 * WARPS  # loads into shared memory need 4 bytes for each thread, of a norm's weight, too
    if rows == 32 and mine * owned.sets == 64:
        batch = WARPS  # each warp has the sums of so many rows once
    while batch > WARPS and batch >= 2 * units:
        batch //= 2
    if form.multiplied == "float32":
        batch = 1
    joined = 1
    if rows == 64 and mine * owned.sets == 64 and form.short and form.group and "mins" not in form.parts:
        # Each warp has rows of its own: all of their sums would not fit into its registers.
        batch, joined = 1, 1 if form.bits == 6 and target.level in ("sm_80", "sm_89") else 256 // form.unit
    several = min(2.0, owned.count * splits / (mine * target.cores))  # programs of a multiprocessor
    weights, activations = form.unit * form.bits * mine * owned.sets // 8, form.unit * (2 if ready else 4) * rows
    shared = form.groups * 8 * mine * owned.sets  # of groups, as much as it may be
    all_room = SHARED.get(target.level, 64 << 10)
    if joined > 1 and target.level in ("sm_90", "sm_100"):
        all_room -= activations * joined  # matrix units may still read those before the ones that are being read
    while batch > WARPS and (weights + activations + shared) * batch > all_room:
        batch //= 2
    rooms = [min(all_room, room // math.ceil(several)) for room in (all_room, ROOM.get(target.level, all_room))]
    needed = LATENCY * target.bandwidth.value / target.cores
    batches = [batch, batch // 2] if batch > (WARPS if rows <= MANY else 2 * WARPS) else [batch]
    for room, size in itertools.product(rooms, batches):  # smaller rounds leave less of the room unused
        tile, stage = weights * size * joined, (weights + activations) * size * joined
        whole, rounds = form.tile_bytes(mine * owned.sets * size * joined), -(-units // (size * joined))
        most = 1 + all_room // (stage + shared * size * joined)
        wanted = 1 + math.ceil(max(UNDER_WAY / (tile * max(1.0, several)), needed / (whole * several)))
        stages = max(2, min(wanted, room // stage + 1, most, 16))
        found = Tiling(mine, size, rows, WARPS, min(stages, 1 + rounds), joined=joined, splits=splits)
        if stages > rounds or whole * (stages - 1) * several >= needed:
            break
    return found


def gemm_tiling(form: Form, owned: Owned, target: Target) -> Tiling:
    """The tile for many rows, of which several programs have a block each: 128 rows of the weight by 128 or 64, where
    512 rows of activations make a program for every multiprocessor of them, else 64 by 64.
    """
    if form.multiplied == "float32":
        return Tiling(32, 1, 32, WARPS, 2, blocks=True)
    joined = 2 if form.group and form.short and "mins" not in form.parts else 1
    for many, rows in ((128, 128), (128, 64), (64, 64)):
        programs = -(-owned.count * owned.sets // many) * -(-512 // rows)
        if programs >= 0.9 * target.cores or (many, rows) == (64, 64):
            break
    stage = form.unit * joined * (form.bits * many + 16 * rows) // 8
    stages = max(2, min(4, 1 + SHARED.get(target.level, 64 << 10) * 3 // 4 // stage))
    return Tiling(many // owned.sets, 1, rows, WARPS * many // 64, stages, blocks=True, joined=joined)


def single_tiling(form: Form, owned: Owned, k: int, target: Target) -> SingleTiling:
    """The tile for one row of activations: as many rows of the weight as make the busiest multiprocessor's work the
    least, and as many stages as keep enough of the weight on its way. Where there is about one program for each
    multiprocessor, columns enough and room for them, it has twice the warps.
    """
    count, units = owned.count * owned.sets, form.units(k)
    most = 64 if form.bits <= 4 else 32
    sizes = [size for size in (64, 32, 16) if size <= most and (size == 16 or count >= BUSY * size * target.cores)]
    rows = min(sizes, key=lambda size: math.ceil(count / (size * target.cores)) * (size + SPREAD))
    programs = max(1.0, count / (rows * target.cores))
    runs = -(-units // joined(form))
    run = joined(form) * form.unit
    part = run * rows * form.bits // 8  # of a tile, for each run in a batch
    shared = (
        part + run * (8 if form.bits == 6 else 6) + rows * COLUMNS * 4
    )  # also the row and a norm's weight, scales and zeros
    all_room = SHARED.get(target.level, 64 << 10)
    wide = programs < 2 and runs >= 4 * WARPS and 2 * WARPS * (shared + run * COLUMNS * 2) <= all_room
    warps = 2 * WARPS if wide else WARPS
    if runs == 3:
        warps = WARPS // 2  # one of four would have nothing to do
    batch = warps
    while batch > 2 and batch >= 2 * runs:
        batch //= 2
    tile, stage = batch * part, batch * shared
    room = all_room // min(2, math.ceil(programs)) - batch * run * COLUMNS * 2
    wanted = 2 + math.ceil(UNDER_WAY / (tile * programs))
    return SingleTiling(rows, batch, warps, max(2, min(wanted, room // stage + 1, 1 + -(-runs // batch))))
