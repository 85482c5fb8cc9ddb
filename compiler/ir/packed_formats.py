"""How weights lie in memory for native kernels: 16 rows side by side, as floats or as groups of small integers.

A weight [N, K] is padded to whole tiles of 16 rows and whole groups of 32 columns. Letters: NT tiles, K padded columns,
G = K / 32 groups. A format stores one to three tensors, its *parts*:

    f32, f16   data [NT, K, 16]: element (tile, k, r) is row 16 · tile + r, column k
    bf16       data [NT, K / 2, 16, 2]: the columns in pairs, as bf16 dot products read them
    fp8        data u8 [NT, K / 4, 16, 4], e4m3fn numbers, scales f32 [NT, 16]; w = scale · number, scale < 256
    int8       quants u8 [NT, K / 4, 16, 4], scales f16 [NT, G, 16]; w = scale · (q - 128)
    int6       quants u8 [NT, G, 6, 16, 4], scales f16 [NT, G, 16]; w = scale · (q - 32)
    int6g16    the same with scales for 16 columns, [NT, 2 G, 16]
    int4       quants u8 [NT, G, 4, 16, 4], scales f16, zeros u8 [NT, G, 16]; w = scale / 8 · (8 q - zero)
    int4g64    the same with scales and zeros for 64 columns, [NT, ⌈G / 2⌉, 16]; int4g128 for 128, [NT, ⌈G / 4⌉, 16]
    int4m      quants as int4, scales f16, mins f16 [NT, G, 16]; w = scale · q + min

A byte (j, r, i) of int4 holds column 4j + i of its group in the low half, 16 + 4j + i in the high half; of int6 these
are the low four bits of a level, and bits 2j and 2j + 1 of byte (4 + h, r, i) the high ones of column 16h + 4j + i. A
zero in eighths of a step keeps the grids of files that store a minimum, which whole steps would shift by half a step.
Padding computes nothing: scale 0, and the level of 0 (int8: 128, int6: 32).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from llmc.errors import InvalidGraph
from llmc.ir.packed_floats import decode_fp8, encode_fp8, float_format
from llmc.ir.packed_int4 import LEVELS, int4_format
from llmc.ir.packed_int6 import int6_format
from llmc.ir.packed_integers import decode_int4m, decode_int8, encode_int4m, encode_int8
from llmc.ir.packed_layout import GROUP, TILE, PackedFormat, Part, padded_columns, tile_count

_CHUNK_ELEMENTS = 1 << 18
"""Elements packed at once: 1 MiB of float32, so that the temporaries stay in the cache."""


_BYTES = Part((GROUP // 4, TILE, 4), torch.uint8)
_HALVES = Part((1, TILE), torch.float16)

FORMATS: dict[str, PackedFormat] = {
    "f32": float_format(torch.float32, 1),
    "f16": float_format(torch.float16, 1),
    "bf16": float_format(torch.bfloat16, 2),
    "fp8": PackedFormat(
        {"data": _BYTES, "scales": Part((TILE,), torch.float32, columns=0)},
        encode_fp8,
        decode_fp8,
        "f32",
        quantized=True,
    ),
    "int8": PackedFormat({"quants": _BYTES, "scales": _HALVES}, encode_int8, decode_int8, "int8", quantized=True),
    "int6": int6_format(GROUP),
    "int6g16": int6_format(GROUP // 2),
    "int4": int4_format(GROUP),
    "int4g64": int4_format(2 * GROUP),
    "int4g128": int4_format(4 * GROUP),
    "int4m": PackedFormat(
        {"quants": LEVELS, "scales": _HALVES, "mins": _HALVES}, encode_int4m, decode_int4m, "int8", quantized=True
    ),
}
"""The formats, by name."""

FLOAT_FORMATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
"""The format that keeps the values of each dtype."""


def format_named(name: str) -> PackedFormat:
    """The format called `name`. Raises `InvalidGraph` when there is none."""
    if name not in FORMATS:
        raise InvalidGraph(f"weight format {name!r:.40}: expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def pack(weight: Tensor, format: str) -> list[Tensor]:
    """The parts of a weight [N, K], or of experts [E, N, K], each of which begins with a tile of its own.

    Temporary memory is a few MiB a thread: rows are converted some tiles at a time, by as many threads as torch uses.
    """
    chosen = format_named(format)
    experts = weight if weight.dim() == 3 else weight.unsqueeze(0)
    count, rows, columns = experts.shape
    tiles, width = tile_count(rows), padded_columns(columns)
    made = [torch.empty(part.shape(count * tiles, columns), dtype=part.dtype) for part in chosen.parts.values()]
    step = max(1, _CHUNK_ELEMENTS // (TILE * max(width, 1)))

    @torch.no_grad()
    def convert(place: tuple[int, int]) -> None:
        expert, start = place
        stop = min(start + step, tiles)
        values = torch.zeros((stop - start) * TILE, width)
        given = experts[expert, start * TILE : stop * TILE]
        values[: given.shape[0], :columns] = given
        encoded = chosen.encode(values.unflatten(0, (-1, TILE)), columns)
        for part, piece in zip(made, encoded, strict=True):
            part[expert * tiles + start : expert * tiles + stop] = piece

    _each(convert, [(expert, start) for expert in range(count) for start in range(0, tiles, step)])
    return made


def _each(work: Callable[[tuple[int, int]], None], places: list[tuple[int, int]]) -> None:
    """Call `work` for every place, on as many threads as torch uses, each of which then computes alone."""
    threads = min(torch.get_num_threads(), len(places))
    if threads < 2:
        for place in places:
            work(place)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # what threads that are started from here on take over
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, places):
                pass
    finally:
        torch.set_num_threads(before)


def unpack(parts: Sequence[Tensor], format: str, n: int, k: int) -> Tensor:
    """The weight [n, k] in float32 that `parts` stand for: exactly, but for the rounding of int4m's sum.

    Raises `InvalidGraph` when the parts are not those of such a weight.
    """
    chosen = format_named(format)
    tiles = tile_count(n)
    expected = [part.shape(tiles, k) for part in chosen.parts.values()]
    if [tuple(part.shape) for part in parts] != expected:
        raise InvalidGraph(f"parts of {format} [{n}, {k}]: found {[list(part.shape) for part in parts]}")
    rows: Tensor = chosen.decode(parts).flatten(0, 1)
    return rows[:n, :k]


def empty_parts(parts_of: Tensor, format: str) -> list[Tensor]:
    """Uninitialised parts of a weight [N, K] or [E, N, K], on the device of `parts_of`, which is that weight."""
    chosen = format_named(format)
    count = parts_of.shape[0] if parts_of.dim() == 3 else 1
    tiles = count * tile_count(parts_of.shape[-2])
    return [
        parts_of.new_empty(part.shape(tiles, parts_of.shape[-1]), dtype=part.dtype) for part in chosen.parts.values()
    ]
