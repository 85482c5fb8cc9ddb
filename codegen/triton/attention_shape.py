"""How one attention is laid out over programs: rows and keys of a tile, warps, stages, and how heads are cut.

What a program holds for all of its keys lies in registers, 255 a thread: the queries, and a sum of values for each of
its rows. So tiles have as many rows as leave a third of the registers to the block of keys at work. A head is cut into
chunks whose widths are powers of two, which tiles must have: 80 is 64 and 16, not 128; and what matrix units read of a
chunk is in registers only until the next one.
"""

from dataclasses import dataclass, replace

from llmc.codegen.regions import Attention
from llmc.codegen.target import Target

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "fp8": 1}
"""Bytes of an element of the cache."""
_IN_FLIGHT = 32 << 10
"""Bytes that a program should have asked for while it works on others."""
SHARED_BYTES = {"sm_80": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Shared memory that a program can have, by level; of sm_80 on all that its code runs on, not on 8.0 alone."""
LEAST_WIDTH = 16
"""Elements of a chunk, and rows of a program where queries are the large side, that matrix units take at least."""


@dataclass(frozen=True)
class Chunk:
    """Elements of a head that are loaded and multiplied together: every `step`-th from `first` on."""

    first: int
    size: int
    width: int
    """Of the tile, a power of two: elements beyond `size` are not there."""
    step: int = 1

    def columns(self, name: str) -> str:
        """The elements that `name`, numbers from 0 to `width`, stands for."""
        text = name if self.step == 1 else f"{self.step} * {name}"
        return f"{text} + {self.first}" if self.first else text


def chunks(size: int, most: int) -> tuple[Chunk, ...]:
    """A head of so many elements, cut so that no chunk is wider than `most`, and that few elements fill chunks up."""
    found: list[Chunk] = []
    first = 0
    while first < size:
        left = size - first
        width = min(most, max(LEAST_WIDTH, power_of_two(left)))
        if width > LEAST_WIDTH and left <= width * 3 // 4:
            width //= 2
        found.append(Chunk(first, min(left, width), width))
        first += width
    return tuple(found)


@dataclass(frozen=True)
class AttentionShape:
    """Sizes that do not depend on the tile."""

    group: int
    """Query heads of a key head."""
    parts: int
    """Programs that a key head's query heads are divided over."""
    heads: int
    """Query heads of a program, but for the last part, which may have fewer."""
    key_size: int
    value_size: int
    element: int
    """Bytes of an element of the cache."""

    @property
    def exact(self) -> bool:
        """Whether products are of fp32 numbers."""
        return self.element == 4

    def registers(self, rows: int) -> int:
        """Of each thread of a warp that holds so many rows: the queries and the sums of values."""
        packed = 1 if self.exact else 2
        return rows * (self.key_size // packed + self.value_size) // 32

    @property
    def key_bytes(self) -> int:
        """What a key head has for one token, without scales."""
        return (self.key_size + self.value_size) * self.element


@dataclass(frozen=True)
class Tile:
    """What one program works on at a time."""

    rows: int
    """Query heads times tokens."""
    keys: int
    warps: int
    stages: int
    """Blocks of keys in flight, and the one at work."""
    chunk: int = 128
    """Most elements of a head that are multiplied at once."""
    groups: int = 0
    """Where keys are the large side of products: warps that take a part of each block's keys each. Else 0."""
    edges_apart: bool = False
    """Whether blocks that need a mask are left to a loop of their own. It costs registers, where sums move between
    loops."""


def decode_shape(region: Attention, dtype: str, target: Target) -> AttentionShape:
    """Of steps in which every sequence has one token.

    The matrix units of NVIDIA's GPUs take 8 rows where keys are the large side, which most models have no more of for
    a key head; 16 if registers allow.
    """
    wide = target.kind != "cuda" or _shape(region, dtype, 16).registers(16) <= _MOST_REGISTERS
    group = region.heads // region.key_heads
    return _shape(region, dtype, 16 if wide and group > 8 else 8)


def prefill_shape(region: Attention, dtype: str) -> AttentionShape:
    """Of steps in which sequences have several tokens."""
    shape = _shape(region, dtype, 64)
    return _shape(region, dtype, _exact_rows(shape)) if shape.exact else shape


_MOST_REGISTERS = 130
"""For what a thread holds of all keys, beside what the block at work takes."""


def _exact_rows(shape: AttentionShape) -> int:
    """Rows of a program whose products are of fp32 numbers."""
    return next((rows for rows in (32, 16) if shape.registers(rows) <= _MOST_REGISTERS // 2), 8)


def _exact_chunk(shape: AttentionShape) -> int:
    """Elements of a head that are multiplied at once where they are fp32 numbers."""
    return 32 if max(shape.key_size, shape.value_size) <= 128 else 16


def _shape(region: Attention, dtype: str, most_heads: int) -> AttentionShape:
    group = region.heads // region.key_heads
    parts = -(-group // most_heads)
    return AttentionShape(group, parts, -(-group // parts), region.key_size, region.value_size, BYTES[dtype])


def decode_tile(shape: AttentionShape, target: Target) -> Tile:
    """The tile of one token's query heads: enough blocks in flight to read at the speed of memory.

    A warp has 16 keys of a block, and all rows; four warps, or two where two blocks of theirs are all that shared
    memory holds.
    """
    rows = 16 if shape.heads > 8 or target.kind != "cuda" else 8
    groups = 4 if 2 * 64 * shape.key_bytes <= SHARED_BYTES[target.level] else 2
    keys = 16 * groups
    # Two or four blocks in memory: counting to three takes registers, and makes ptxas spill some.
    stages = 3 if keys * shape.key_bytes >= _IN_FLIGHT else 5
    tile = Tile(rows, keys, groups, stages, _exact_chunk(shape) if shape.exact else 128, groups)
    return _fitting(shape, tile, stages - 1, target)


def prefill_tile(shape: AttentionShape, target: Target, *, window: bool = False) -> Tile:
    """The tile of several tokens' query heads: as wide as registers allow, a warp having 16 rows of its own.

    Blocks of many keys, so that sums of values are multiplied, and warps wait for each other, seldom. How many there is
    room for beside the sums was found by compiling. fp32 takes so many registers that its products have keys as their
    large side, as in decode steps. The loop over edges of a `window` takes registers too.
    """
    widest, level = max(shape.key_size, shape.value_size), target.level
    if shape.exact:
        # One warp where no block of four is in memory: two of its blocks are.
        groups = 4 if 64 * shape.key_bytes <= SHARED_BYTES[level] else 1
        tile = Tile(_exact_rows(shape), 16 * groups, groups, 3, _exact_chunk(shape), groups)
        return _fitting(shape, tile, 2, target)
    packed = shape.element == 1
    if level == "sm_100" and widest <= 128 and not packed:
        # Two programs on a multiprocessor: one multiplies while the other weighs.
        return _fitting(shape, Tile(128, 64, 4, 3, edges_apart=True), 3, target, programs=2)
    if level == "sm_100":
        if packed and widest > 192:
            return _fitting(shape, Tile(64, 64, 4, 3), 3, target)
        return _fitting(shape, Tile(128, 64, 8, 3, edges_apart=not (window and widest > 192)), 3, target)
    if level == "sm_90":
        # Three blocks have to fit in memory: with two, none is on its way while another is at work.
        keys = 128 if widest <= (64 if window else 128) and not packed else 64 if widest <= 192 or packed else 32
        apart = not (window and widest > 192)
        return _fitting(shape, Tile(128, keys, 8, 3, edges_apart=apart), 3, target)
    keys = 64 if widest <= (64 if packed else 128) else 32 if widest <= 128 else 16
    return _fitting(shape, Tile(128, keys, 8, 3, edges_apart=True), 2, target)


def _fitting(shape: AttentionShape, tile: Tile, buffers: int, target: Target, programs: int = 1) -> Tile:
    """A tile that has so many blocks in shared memory, with fewer stages where that does not hold them for as many
    programs.
    """
    in_memory = target.level in ("sm_90", "sm_100") and not tile.groups  # elsewhere they are in registers by then
    queries = tile.rows * shape.key_size * 2 if in_memory else 0
    room = (SHARED_BYTES[target.level] // programs - queries - (2 << 10)) // (tile.keys * shape.key_bytes)
    return replace(tile, stages=max(1, tile.stages - max(0, buffers - room)))


def power_of_two(size: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (size - 1).bit_length()
