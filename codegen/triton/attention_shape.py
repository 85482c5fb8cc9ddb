"""How one attention is laid out over programs: rows and keys of a tile, warps, stages, splits of the keys."""

from dataclasses import dataclass, replace

from llmc.codegen.regions import Attention
from llmc.codegen.target import Target

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "fp8": 1}
"""Bytes of an element of the cache."""
LEAST_KEYS = 128
"""Keys that are worth a program of their own."""
MOST_SPLITS = 64


@dataclass(frozen=True)
class AttentionShape:
    """Sizes that all kernels of an attention share."""

    group: int
    """Query heads of a key head."""
    parts: int
    """Programs that a key head's query heads are divided over."""
    heads: int
    """Query heads of a program, but for the last part, which may have fewer."""
    key_width: int
    """Elements of keys and queries in a tile: a power of two, as are all sides of tiles."""
    value_width: int
    element: int
    """Bytes of an element of the cache."""

    @property
    def exact(self) -> bool:
        """Whether products are of fp32 numbers."""
        return self.element == 4


@dataclass(frozen=True)
class Tile:
    """What one program works on at a time."""

    rows: int
    """Query heads times tokens."""
    keys: int
    warps: int
    stages: int
    """Blocks of keys in flight, and the one at work."""
    edges_apart: bool = True
    """Whether blocks that need a mask are left to a loop of their own. It costs registers, where sums move between
    loops."""


def attention_shape(region: Attention, dtype: str, most_heads: int) -> AttentionShape:
    """The sizes of a region whose cache is of a dtype, if a program takes up to so many query heads of a key head."""
    group = region.heads // region.key_heads
    parts = -(-group // most_heads)
    key_width, value_width = (max(16, power_of_two(size)) for size in (region.key_size, region.value_size))
    return AttentionShape(group, parts, -(-group // parts), key_width, value_width, BYTES[dtype])


def decode_tile(shape: AttentionShape, target: Target) -> Tile:
    """The tile of one token's query heads: enough blocks in flight to read at the speed of memory."""
    block = 64 * (shape.key_width + shape.value_width) * shape.element
    stages = min(5, 2 + -(-_IN_FLIGHT // block))
    warps = 8 if shape.exact and shape.key_width > 64 else 4
    return _fitting(shape, Tile(16, 64, warps, stages), stages - 1, target)


def prefill_tile(shape: AttentionShape, target: Target) -> Tile:
    """The tile of several tokens' query heads: as wide as registers allow, a warp having 16 rows of its own."""
    if shape.exact:
        return _fitting(shape, Tile(max(32, power_of_two(shape.heads)), 32, 4, 2), 1, target)
    wgmma = target.kind == "cuda" and int(target.level.removeprefix("sm_")) >= 90
    wide = shape.value_width > 128
    if wgmma:
        return _fitting(shape, Tile(128, 64, 8, 3, not wide), 3, target)
    keys = 32 if max(shape.key_width, shape.value_width) > 128 else 64
    apart = not wide and shape.element > 1  # the code that unpacks bytes is long: once is enough
    return _fitting(shape, Tile(64 if wide else 128, keys, 8, 3, apart), 2, target)


def _fitting(shape: AttentionShape, tile: Tile, buffers: int, target: Target) -> Tile:
    """A tile that has so many blocks in shared memory, with fewer stages where that does not hold them."""
    block = tile.keys * (shape.key_width + shape.value_width) * shape.element
    queries = tile.rows * shape.key_width * shape.element
    turned = 40 << 10 if shape.exact else 8 << 10 if shape.value_width > 128 else 0  # for weights, from warp to warp
    room = (SHARED_BYTES[target.level] - queries - turned) // block
    return replace(tile, stages=max(1, tile.stages - max(0, buffers - room)))


_IN_FLIGHT = 32 << 10
"""Bytes that a program should have asked for while it works on others."""
SHARED_BYTES = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Shared memory that a program can have, by level."""


def split_counts(programs: int, target: Target) -> list[tuple[int, int | None, int]]:
    """How many programs divide the keys of a sequence, for a number of sequences: (least, most or None, splits).

    programs: of one sequence without splits. The fewer sequences, the more splits: together they fill the cores twice.
    """
    ranges: list[tuple[int, int | None, int]] = []
    sequences = 1
    while True:
        splits = min(MOST_SPLITS, max(1, target.cores * 2 // (programs * sequences)))
        splits = 1 << (splits.bit_length() - 1)
        if ranges and ranges[-1][2] == splits:
            ranges[-1] = ranges[-1][0], sequences, splits
        else:
            ranges.append((sequences, sequences, splits))
        if splits == 1:
            return [*ranges[:-1], (ranges[-1][0], None, 1)]
        sequences += 1


def power_of_two(size: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (size - 1).bit_length()
