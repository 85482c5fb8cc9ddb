"""Pack the tokens of several sequences, whole prompts, parts of them or single tokens, into one step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmc.runtime.kv_cache import BlockTable, Copy
from llmc.runtime.program import Batch

Rows = Literal["none", "last", "all"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The next tokens of one sequence."""

    tokens: Sequence[int]
    """At least one; their positions follow those that the table holds."""
    table: BlockTable
    rows: Rows
    """The tokens whose logits are wanted."""


@dataclass(frozen=True)
class Packed:
    """A step, and what must be copied in the cache before it."""

    batch: Batch
    copies: tuple[Copy, ...]
    rows: tuple[slice, ...]
    """For each piece the rows of the logits that are its own."""


class Packer:
    """Packs step after step. Most steps take one token of each sequence that took part in the last, and few of those
    begin a block: the arrays then are those of the last step, with other numbers in them."""

    def __init__(self) -> None:
        """No step yet."""
        self._last: Packed | None = None
        self._followed: list[tuple[BlockTable, int, int]] = []
        """Each sequence of the last step, with its length and the edition of its table then."""

    def pack(self, pieces: Sequence[Piece]) -> Packed:
        """The same as the function `pack`; what it returned before is not valid any more."""
        if self._last is not None and len(pieces) == len(self._followed) and self._goes_on(pieces):
            return self._advance(self._last, pieces)
        packed = pack(pieces)
        one_each = len(packed.batch.tokens) == len(pieces) == packed.rows[-1].stop
        self._last = Packed(packed.batch, (), packed.rows) if one_each else None
        self._remember(pieces)
        return packed

    def _goes_on(self, pieces: Sequence[Piece]) -> bool:
        for piece, (table, length, edition) in zip(pieces, self._followed, strict=True):
            known = piece.table is table and table.length == length and table.edition == edition
            if not (known and len(piece.tokens) == 1 and piece.rows != "none" and table.fits_one()):
                return False
        return True

    def _advance(self, last: Packed, pieces: Sequence[Piece]) -> Packed:
        batch = last.batch
        for place, piece in enumerate(pieces):
            batch.tokens[place] = piece.tokens[0]
            piece.table.length += 1
        for counts in (batch.positions, batch.slots, batch.lengths):
            counts += 1
        self._remember(pieces)
        return last

    def _remember(self, pieces: Sequence[Piece]) -> None:
        self._followed = [(piece.table, piece.table.length, piece.table.edition) for piece in pieces]


def pack(pieces: Sequence[Piece]) -> Packed:
    """Extend the table of each piece and lay all their tokens one after another.

    At least one row of logits is always asked for, as a program need not be able to return none. Raises BadRequest,
    with every table unchanged, if the cache has too few free blocks for every shared block to be copied.
    """
    assert pieces, "a step has at least one sequence"
    assert all(piece.tokens for piece in pieces), "a sequence in a step has at least one token"
    pieces[0].table.pool.check_available(sum(piece.table.needed(len(piece.tokens)) for piece in pieces))
    begins = [piece.table.length for piece in pieces]
    extensions = [piece.table.extend(len(piece.tokens)) for piece in pieces]
    starts = np.cumsum([0, *(len(piece.tokens) for piece in pieces)], dtype=np.int64)
    ends = [piece.table.length for piece in pieces]
    rows: list[int] = []
    slices: list[slice] = []
    for piece, start, end in zip(pieces, starts[:-1], starts[1:], strict=True):
        wanted = range({"none": end, "last": end - 1, "all": start}[piece.rows], end)
        slices.append(slice(len(rows), len(rows) + len(wanted)))
        rows.extend(wanted)
    batch = Batch(
        tokens=np.concatenate([np.array(piece.tokens, np.int64) for piece in pieces]),
        positions=np.concatenate([np.arange(b, e, dtype=np.int64) for b, e in zip(begins, ends, strict=True)]),
        slots=np.concatenate([extension.slots for extension in extensions]),
        starts=starts,
        lengths=np.array(ends, np.int64),
        blocks=_block_tables([piece.table for piece in pieces]),
        rows=np.array(rows or [starts[-1] - 1], np.int64),
    )
    return Packed(batch, tuple(copy for extension in extensions for copy in extension.copies), tuple(slices))


def _block_tables(tables: Sequence[BlockTable]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    used = [table.blocks[: table.pool.blocks_for(table.length)] for table in tables]
    blocks = np.zeros((len(tables), max(map(len, used))), np.int64)
    for row, held in zip(blocks, used, strict=True):
        row[: len(held)] = held
    return blocks
