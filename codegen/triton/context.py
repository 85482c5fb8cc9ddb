"""What the emitters of a program share: the target, the cache, and the workspaces that kernels ask for."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from llmc.codegen.layout import Buffer, Domain
from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.runtime.crossover import Crossover, linear_key
from llmc.runtime.cuda.plan import Workspace
from llmc.runtime.program import CacheSpec
from llmc.runtime.shares import Shares


@dataclass
class Context:
    """One program's."""

    target: Target
    crossovers: Crossovers
    caches: tuple[CacheSpec, ...]
    block_size: int
    vocabulary: int
    workspaces: dict[str, Workspace] = field(default_factory=dict)
    chosen: dict[str, Crossover] = field(default_factory=dict)
    """All crossovers that were asked for, by the names of linears."""
    shares: dict[str, Shares] = field(default_factory=dict)
    """Over how many programs attentions divide their keys, by their names."""
    listed: frozenset[int] = frozenset()
    """Layers whose attention goes over lists of blocks (see `llmc.codegen.triton.attention_lists`)."""
    listing: set[int] = field(default_factory=set)
    """Lists that a launch makes, by the keys of their buffers."""
    bounded: frozenset[int] = frozenset()
    """Layers whose attention needs no running maximum (see `llmc.codegen.triton.score_bounds`)."""
    _passed: dict[str, Buffer] = field(default_factory=dict)
    _keys: Any = field(default_factory=lambda: count(1 << 20))

    @property
    def pdl(self) -> bool:
        """Whether kernels may be launched before their predecessor has ended."""
        level = self.target.level
        return self.target.kind == "cuda" and int(level.removeprefix("sm_").rstrip("a")) >= 90

    def crossover(self, n: int, k: int, format: str) -> Crossover:
        """From how many rows on the variants of a linear serve; predicted once for all of one shape."""
        key = linear_key(n, k, format)
        if key not in self.chosen:
            self.chosen[key] = self.crossovers.get(n, k, format, self.target)
        return self.chosen[key]

    def estimated(self, key: str, default: Crossover) -> Crossover:
        """The crossovers of something else that has variants, for which there is no prediction."""
        return self.chosen.setdefault(key, self.crossovers.linear.get(key, default))

    def workspace(self, name: str, bytes: int, bytes_per_token: int = 0, *, bytes_per_sequence: int = 0) -> str:
        """A zeroed workspace of at least so many bytes that outlives steps; equal names share the largest."""
        known = self.workspaces.get(name, Workspace(name, 0))
        self.workspaces[name] = Workspace(
            name,
            max(bytes, known.bytes),
            max(bytes_per_token, known.bytes_per_token),
            max(bytes_per_sequence, known.bytes_per_sequence),
        )
        return name

    def scratch(self, name: str, domain: Domain, width: int, dtype: str) -> Buffer:
        """A buffer of the arena for what passes between the launches of one region."""
        return Buffer(next(self._keys), name, domain, width, dtype, "arena")

    def passed(self, name: str, domain: Domain, width: int, dtype: str) -> Buffer:
        """A buffer of the arena for what regions pass to each other beside their values: one for each name."""
        if name not in self._passed:
            self._passed[name] = self.scratch(name, domain, width, dtype)
        return self._passed[name]
