"""From how many rows on each variant of a linear serves.

A linear [n, k] has up to four variants: gemv computes row by row, flat a few rows at once, gemm many, and library is a
vendor's matrix product. They take over from each other in this order as rows become more.
"""

from dataclasses import dataclass

from llmc.runtime.checked_json import Field

LIBRARY = "library"
VARIANTS = ("gemv", "flat", "gemm", LIBRARY)
"""In the order in which they take over."""

NEVER = 2**31 - 1
"""The crossover to a variant that is never used; fits a C int."""

PREDICTED = "predicted"


@dataclass(frozen=True)
class Crossover:
    """The first numbers of rows for which the variants of one linear serve; gemv serves from one row on."""

    flat: int
    gemm: int
    source: str = PREDICTED
    """Where the numbers come from: `PREDICTED`, or such as "measured on an EPYC, 2026-11-21"."""
    library: int = NEVER

    @property
    def starts(self) -> tuple[int, ...]:
        """Of `VARIANTS`."""
        return 1, self.flat, self.gemm, self.library

    @property
    def in_order(self) -> bool:
        """Whether no variant begins before the one that it takes over from."""
        return list(self.starts) == sorted(self.starts) and self.library <= NEVER


def read_crossover(field: Field) -> Crossover:
    """The crossovers of one linear, as a file has them. Raises ArtifactRejected."""
    members = field.members(tuple(Crossover.__dataclass_fields__))
    flat, gemm, library = (members[name].integer(1, NEVER) for name in ("flat", "gemm", "library"))
    crossover = Crossover(flat, gemm, members["source"].text(), library)
    if not crossover.in_order:
        field.reject("crossovers in order: flat, gemm, library")
    return crossover


def linear_key(n: int, k: int, format: str) -> str:
    """The name of a linear [n, k] in tables of crossovers."""
    return f"{n}x{k}:{format}"


def experts_key(experts: int, n: int, k: int, format: str) -> str:
    """The name of a mixture of experts whose first weights are [n, k] each. Its flat variant computes the experts of
    each token by themselves, its gemm variant each expert for all of its tokens.
    """
    return f"{experts}x{n}x{k}:{format}"
