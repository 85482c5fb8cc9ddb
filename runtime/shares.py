"""Over how many programs of a GPU the keys of a decode step are divided: by a rule, or as was measured on such GPUs.

    Shares(rule=33, most=66).at(4) -> 33
    Shares(33, 66, ShareTable(((1, 66), (4, 16)), "measured on ...")).at(4) -> 16

All sequences of a step share the programs (see `find_share` in `llmc.codegen.triton.library.attention`), whatever their
lengths: the number depends on how many sequences there are, and so holds for a recorded step while contexts grow.
"""

from dataclasses import dataclass

from llmc.runtime.checked_json import Field
from llmc.runtime.crossover import Crossover, read_crossover

MOST_SHARES = 1 << 16
BY_RULE = "rule"


@dataclass(frozen=True)
class ShareTable:
    """What was measured."""

    starts: tuple[tuple[int, int], ...]
    """From how many sequences on, in order and from 1 on, over how many programs."""
    source: str
    """Such as "measured on an H200, 2026-11-21"."""


Tuned = Crossover | ShareTable
"""What is measured on GPUs: of a linear, or of an attention."""


@dataclass(frozen=True)
class Shares:
    """Of one kind of attention, for each of the programs that its key heads take."""

    rule: int
    """Programs where nothing was measured: those that the grids of a plan's launches have."""
    most: int
    """Programs that there is memory for."""
    chosen: ShareTable | None = None
    """What takes the place of the rule."""

    def at(self, sequences: int) -> int:
        """In a step of so many sequences."""
        if self.chosen is None:
            return self.rule
        found = [programs for first, programs in self.chosen.starts if first <= sequences]
        return min(found[-1], self.most) if found else self.rule

    @property
    def source(self) -> str:
        """Where the numbers come from."""
        return BY_RULE if self.chosen is None else self.chosen.source

    def __str__(self) -> str:
        starts = ((1, self.rule),) if self.chosen is None else self.chosen.starts
        return ", ".join(f"{min(programs, self.most)} from {first} on" for first, programs in starts)


def read_tuned(field: Field) -> Tuned:
    """What was measured of a linear or of an attention, as a file has it. Raises ArtifactRejected."""
    members = field.value
    return read_share_table(field) if isinstance(members, dict) and "starts" in members else read_crossover(field)


def read_share_table(field: Field) -> ShareTable:
    """What was measured of one attention, as a file has it. Raises ArtifactRejected."""
    members = field.members(("starts", "source"))
    rows = members["starts"].integer_rows(1000, 2)
    starts = tuple((row[0], row[1]) for row in rows)
    firsts = [first for first, _ in starts]
    if firsts[:1] != [1] or firsts != sorted(set(firsts)) or any(len(row) != 2 for row in rows):
        members["starts"].reject("numbers of sequences from 1 on in order, each with a number of programs")
    if not all(1 <= programs <= MOST_SHARES for _, programs in starts):
        members["starts"].reject(f"from 1 to {MOST_SHARES} programs")
    return ShareTable(starts, members["source"].text())


def attention_key(heads: int, key_heads: int, sizes: tuple[int, int], dtype: str, mask: str) -> str:
    """The name of a kind of attention in tables: what decides how long a program takes for a key."""
    key_size, value_size = sizes
    size = f"{key_size}" if key_size == value_size else f"{key_size}+{value_size}"
    return f"attention {heads}/{key_heads}x{size}:{dtype}, {mask}"
