"""The map of the paged cache: which blocks hold the tokens of which sequence.

The program owns the memory; this is bookkeeping only. A block has room for `block_size` tokens in every layer. Blocks
are counted by reference, so that sequences with a common beginning share it; who writes into a shared block gets a copy
of it first (copy on write).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmc.errors import BadRequest

Copy = tuple[int, int]
"""A block and the one that its content must be copied to, before the next step."""


class BlockPool:
    """The blocks of a cache, free or counted by how many tables hold them. The lowest free block is taken first."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """All blocks are free. Raises BadRequest unless both sizes are positive."""
        if num_blocks < 1 or block_size < 1:
            raise BadRequest(f"cache: {num_blocks} blocks of {block_size} tokens; use at least one of each")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks))
        self._holders = np.zeros(num_blocks, np.int64)

    @property
    def available(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens of one sequence fill."""
        return -(-tokens // self.block_size)

    def holders(self, block: int) -> int:
        """How many tables hold a block."""
        return int(self._holders[block])

    def check_available(self, blocks: int) -> None:
        """Raise BadRequest if fewer than `blocks` are free."""
        if blocks > len(self._free):
            raise BadRequest(
                f"cache: {blocks} blocks of {self.block_size} tokens needed, {len(self._free)} of {self.num_blocks} are"
                " free; raise num_blocks, shorten the requests or send fewer at a time"
            )

    def take(self, count: int) -> list[int]:
        """Take free blocks, all or none. Raises BadRequest."""
        self.check_available(count)
        blocks = [heapq.heappop(self._free) for _ in range(count)]
        self._holders[blocks] = 1
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Hold blocks that are held already once more."""
        assert all(self._holders[block] > 0 for block in blocks), "only a held block can be shared"
        for block in blocks:
            self._holders[block] += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """Let go of blocks; those that nobody else holds become free."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is free already"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                heapq.heappush(self._free, block)


@dataclass(frozen=True)
class Extension:
    """Where the new tokens of a sequence go."""

    slots: npt.NDArray[np.int64]
    """[T] block * block_size + offset in the block, for each new token."""
    copies: tuple[Copy, ...]
    """Blocks to be copied first."""


class BlockTable:
    """The blocks of one sequence in order, and how many tokens it has in them."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.length = 0
        """Tokens in the cache."""
        self.blocks: list[int] = []
        """Block `position // block_size` holds that position; blocks beyond the length are reserved."""
        self.edition = 0
        """Rises when tokens of the cache are forgotten or moved; as long as it stays, the table only grows."""

    def reserve(self, tokens: int) -> None:
        """Take the blocks that a length of `tokens` needs, so that growing so far cannot fail. Raises BadRequest."""
        self.blocks += self.pool.take(max(self.pool.blocks_for(tokens) - len(self.blocks), 0))

    def needed(self, tokens: int) -> int:
        """Free blocks that extending by so many tokens takes, copies of shared ones included."""
        copied = tokens > 0 and self._last_is_shared()
        return copied + max(self.pool.blocks_for(self.length + tokens) - len(self.blocks), 0)

    def extend(self, tokens: int) -> Extension:
        """Make room for the next `tokens` tokens and count them in. Raises BadRequest and changes nothing if it cannot.

        The copies must be made before the tokens are written.
        """
        self.pool.check_available(self.needed(tokens))
        copies: tuple[Copy, ...] = ()
        if tokens and self._last_is_shared():
            index = self.length // self.pool.block_size
            shared = self.blocks[index]
            (self.blocks[index],) = self.pool.take(1)
            self.pool.give_back([shared])
            self.edition += 1
            copies = ((shared, self.blocks[index]),)
        self.reserve(self.length + tokens)
        positions = np.arange(self.length, self.length + tokens, dtype=np.int64)
        size = self.pool.block_size
        slots = np.array(self.blocks, np.int64)[positions // size] * size + positions % size
        self.length += tokens
        return Extension(slots, copies)

    def fits_one(self) -> bool:
        """Whether the next token goes into a block that is partly filled and that nobody else holds."""
        index, filled = divmod(self.length, self.pool.block_size)
        return filled > 0 and self.pool.holders(self.blocks[index]) == 1

    def fork(self) -> "BlockTable":
        """A second sequence with the same tokens; the two share blocks until one of them writes."""
        other = BlockTable(self.pool)
        other.length = self.length
        other.blocks = self.blocks[: self.pool.blocks_for(self.length)]
        self.pool.share(other.blocks)
        return other

    def truncate(self, length: int) -> None:
        """Forget the tokens from position `length` on and give back the blocks that are not needed any more."""
        assert 0 <= length <= self.length, f"cannot cut {self.length} tokens to {length}"
        self.length = length
        self.edition += 1
        keep = self.pool.blocks_for(length)
        self.pool.give_back(self.blocks[keep:])
        del self.blocks[keep:]

    def release(self) -> None:
        """Give back every block; the sequence is empty again."""
        self.truncate(0)

    def _last_is_shared(self) -> bool:
        """Whether the next token goes into a block that is partly filled and that others hold as well."""
        index, filled = divmod(self.length, self.pool.block_size)
        return filled > 0 and self.pool.holders(self.blocks[index]) > 1
