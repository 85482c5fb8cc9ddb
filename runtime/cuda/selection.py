"""Which variant of each linear serves how many rows: a table of crossovers narrows the ranges of a plan's launches.
The table also says over how many programs attentions divide their keys.

    select(plan, table={}, without=()) -> Plan
    shares(candidates, crossover) -> {variant: (first, last)}

A variant serves from its crossover on, or from where the one before it takes no more rows; and never before it takes
any. So a table that was measured with other kernels leaves no number of rows to nobody, and none to two variants.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise

from llmc.errors import ArtifactRejected, BadOption
from llmc.runtime.crossover import NEVER, VARIANTS, Crossover
from llmc.runtime.cuda.plan import Candidate, Plan, When
from llmc.runtime.shares import ShareTable, Tuned

Rows = tuple[int, int | None]
"""The first and the last number of rows; None is no end."""


def select(plan: Plan, table: Mapping[str, Tuned] | None = None, *, without: Collection[str] = ()) -> Plan:
    """A plan whose launches are those that crossovers choose: those of `table`, by linear, else the plan's own.

    Shares are those of `table`, by attention, or else the plan's own.

    Linears and attentions that the plan does not have are passed over. without: variants that cannot run here.

    Raises:
        BadOption: crossovers of one of the plan's linears are out of order.
        ArtifactRejected: the variants of a linear leave a number of rows to nobody.
    """
    known = table or {}
    crossovers = {name: found for name, found in known.items() if isinstance(found, Crossover)}
    divided = {name: found for name, found in known.items() if isinstance(found, ShareTable)}
    chosen = {linear: crossovers.get(linear, own) for linear, own in plan.crossovers.items()}
    shares_of = {name: replace(own, chosen=divided.get(name, own.chosen)) for name, own in plan.shares.items()}
    for linear, crossover in chosen.items():
        if not crossover.in_order:
            raise BadOption(
                f"crossovers of {linear}: flat from {crossover.flat}, gemm from {crossover.gemm}, library from"
                f" {crossover.library} ({crossover.source}); expected 1 <= flat <= gemm <= library; run `llmc tune`"
            )
    groups: dict[tuple[int, str], list[Candidate]] = {}
    for launch in plan.launches:
        if launch.candidate is not None and launch.candidate.variant not in without:
            groups.setdefault((launch.region, launch.candidate.linear), []).append(launch.candidate)
    served: dict[tuple[int, str], dict[str, Rows]] = {}
    for (region, linear), candidates in groups.items():
        try:
            served[region, linear] = shares(candidates, chosen[linear])
        except ValueError as error:
            raise ArtifactRejected(
                f"plan for {plan.target}: nothing computes {linear} of region {region} for {error}; build it again"
            ) from None
    launches = []
    narrow = cache(narrowed)  # layers have the same
    for launch in plan.launches:
        candidate = launch.candidate
        if candidate is not None:
            rows = served.get((launch.region, candidate.linear), {}).get(candidate.variant)
            when = narrow(launch.when, candidate, rows)
            launch = launch if when == launch.when else replace(launch, when=when)
        launches.append(launch)
    return replace(plan, launches=tuple(launches), crossovers=chosen, shares=shares_of)


def shares(candidates: Iterable[Candidate], crossover: Crossover) -> dict[str, Rows]:
    """The numbers of rows that each variant of one linear serves, of which `candidates` are the launches.

    Variants that serve none are left out. Raises ValueError, which says for how many rows, if nobody serves these.
    """
    able: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        able.setdefault(candidate.variant, []).append(candidate)
    begins: list[tuple[int, str]] = []
    limit: int | None = 1
    for variant, start in zip(VARIANTS, crossover.starts, strict=True):
        if variant not in able or (limit is None and start >= NEVER):
            continue
        least, most = _joined(able[variant])
        begin = max(start, least, begins[-1][0] if begins else 1)
        begin = begin if limit is None else min(begin, limit)
        if begin < least or (most is not None and begin > most):
            continue  # too late for the variant before it, or for itself
        begins.append((begin, variant))
        limit = None if most is None else most + 1
    if limit is not None:
        raise ValueError(f"{limit} rows")
    ends = [(begin, variant, following - 1) for (begin, variant), (following, _) in pairwise(begins)]
    found: dict[str, Rows] = {variant: (begin, end) for begin, variant, end in ends if begin <= end}
    return {**found, begins[-1][1]: (begins[-1][0], None)}


def narrowed(when: When, candidate: Candidate, rows: Rows | None) -> When:
    """The steps of a launch whose variant serves `rows`; None is no step at all."""
    first, last = (1, 0) if rows is None else rows
    least = max(first, candidate.least)
    most = min((end for end in (last, candidate.most) if end is not None), default=None)
    if most is not None and most < least:
        least, most = 1, 0
    return replace(when, least=least, most=most)


def _joined(candidates: Iterable[Candidate]) -> Rows:
    """The numbers of rows that launches of one variant take between them. Raises ValueError if there is a gap."""
    first, *others = sorted(candidates, key=lambda one: one.least)
    most = first.most
    for candidate in others:
        if most is None:
            break
        if candidate.least > most + 1:
            raise ValueError(f"{most + 1} rows")
        most = None if candidate.most is None else max(most, candidate.most)
    return first.least, most
