"""Kernels of Linear regions, in four variants: for one row, or on ordinary lanes for a few; in tiles for up to 8, 16,
32 and 64 rows; in blocks of tiles for any number; and around the product of a vendor's library.

A program holds all of them for every number of rows that they can serve: crossovers choose between them, those that
are predicted here, or those that were measured where it runs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from llmc.codegen.layout import View
from llmc.codegen.regions import Linear
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, rows_of
from llmc.codegen.triton.linear_around import emit_heads, emit_ready, raw_sums
from llmc.codegen.triton.linear_epilogue import finishes
from llmc.codegen.triton.linear_formats import FORMS
from llmc.codegen.triton.linear_gemv import emit_gemv
from llmc.codegen.triton.linear_library import ProductDraft, emit_library, multiplies
from llmc.codegen.triton.linear_rows import owned
from llmc.codegen.triton.linear_single import emit_single
from llmc.codegen.triton.linear_source import Source
from llmc.codegen.triton.linear_tiles import SQUARED, emit_tiles
from llmc.codegen.triton.linear_tiling import (
    GEMM_FROM,
    LIBRARY_FROM,
    WIDTHS,
    flat_tiling,
    fused_rows,
    gemm_tiling,
    lane_rows,
    single_tiling,
)
from llmc.codegen.triton.narrowing import is_ready
from llmc.runtime.crossover import LIBRARY, Crossover, linear_key
from llmc.runtime.cuda.plan import ALWAYS, Candidate, When
from llmc.runtime.cuda.selection import narrowed, shares

_Made = TypeVar("_Made", Draft, ProductDraft, Draft | ProductDraft)


def emit_linear(region: Linear, context: Context) -> list[Draft | ProductDraft]:
    """The launches of one region, which between them serve every number of rows."""
    return _Variants(region, context).drafts()


class _Variants:
    def __init__(self, region: Linear, context: Context) -> None:
        self.region, self.context, self.form = region, context, FORMS[region.format]
        complete = not region.parts or finishes(region, context)
        self.raw = None if complete else raw_sums(region, context)
        self.owned = owned(region, finished=complete)
        self.symbol = rows_of(region.domain)
        self.on_lanes = not self.form.strips and self.form.name != "fp8"
        self.fused = fused_rows(region, self.form)
        self.rounded = region.source if isinstance(region.source, View) and is_ready(region) else None
        self.ready = self.rounded is not None

    def drafts(self) -> list[Draft | ProductDraft]:
        region, context = self.region, self.context
        crossover = context.crossover(region.n, region.k, region.format)
        made = self._choices(crossover) if self.symbol else [self._single(crossover)]
        return [*made, *([emit_heads(region, context, self.raw)] if self.raw is not None else [])]

    def _choices(self, crossover: Crossover) -> list[Draft | ProductDraft]:
        drafts: list[Draft | ProductDraft] = (
            [self._gemv(rows) for rows in range(1, lane_rows(self.region) + 1)] if self.on_lanes else []
        )
        if not self.on_lanes:
            drafts.append(self._one_row())
        for before, width in zip((0, *WIDTHS), WIDTHS, strict=False):
            least = before + 1
            if width > self.fused and self.rounded is None:
                drafts.append(self._ready("flat", least, WIDTHS[-1]))
            drafts.append(self._flat(width, least))
        if not self.ready:
            drafts.append(self._ready("gemm", GEMM_FROM, None))
        drafts += [self._gemm(), *self._library()]
        return choose(drafts, crossover)

    def _single(self, crossover: Crossover) -> Draft:
        """The launch where there is one row."""
        if not self.on_lanes:
            draft = self._one_row()
        else:
            draft = self._gemv(1) if crossover.flat > 1 else self._flat(WIDTHS[0], 1)
        return replace(draft, when=ALWAYS, candidate=None)

    def _gemv(self, rows: int) -> Draft:
        draft = emit_gemv(self.region, self.context, self.form, self.owned, rows, ALWAYS, self.raw)
        return self._candidate(draft, "gemv", rows, rows)

    def _flat(self, width: int, least: int) -> Draft:
        rounded = self.rounded if width > self.fused or self.ready else None
        ready = rounded is not None
        divisible = ready or not Source(self.region.source, self.region.k, width > SQUARED).squares
        tiling = flat_tiling(
            self.form, self.owned, width, self.region.k, self.context.target, ready=ready, divisible=divisible
        )
        draft = emit_tiles(self.region, self.context, self.form, self.owned, tiling, ALWAYS, rounded, self.raw)
        return self._candidate(draft, "flat", least, width)

    def _one_row(self) -> Draft:
        tiling = single_tiling(self.form, self.owned, self.region.k, self.context.target)
        draft = emit_single(self.region, self.context, self.form, self.owned, tiling, ALWAYS, self.raw)
        return self._candidate(draft, "gemv", 1, 1)

    def _gemm(self) -> Draft:
        tiling = gemm_tiling(self.form, self.owned, self.context.target)
        draft = emit_tiles(self.region, self.context, self.form, self.owned, tiling, ALWAYS, self.rounded, self.raw)
        return self._candidate(draft, "gemm", GEMM_FROM, None)

    def _library(self) -> list[Draft | ProductDraft]:
        if not multiplies(self.region, self.form, self.context.target):
            return []
        assert self.rounded is not None, "tiles need rows made ready before"
        drafts = emit_library(self.region, self.context, self.form, self.owned, self.rounded, self.raw)
        ready = [] if self.ready else [self._ready(LIBRARY, LIBRARY_FROM, None)]
        return [*ready, *(self._candidate(draft, LIBRARY, LIBRARY_FROM, None) for draft in drafts)]

    def _ready(self, variant: str, least: int, most: int | None) -> Draft:
        """The launch that makes rows ready; all variants that need it share its kernel and its result."""
        self.rounded, draft = emit_ready(self.region, self.context, self.form, ALWAYS, into=self.rounded)
        return self._candidate(draft, variant, least, most)

    def _candidate(self, draft: _Made, variant: str, least: int, most: int | None) -> _Made:
        linear = linear_key(self.region.n, self.region.k, self.region.format)
        return replace(draft, when=When(self.symbol), candidate=Candidate(linear, variant, least, most))


def choose(drafts: Sequence[_Made], crossover: Crossover) -> list[_Made]:
    """The launches of one linear, each of a variant, for the numbers of rows that crossovers choose its variant for."""
    found = shares([draft.candidate for draft in drafts if draft.candidate is not None], crossover)
    return [
        draft
        if draft.candidate is None
        else replace(draft, when=narrowed(draft.when, draft.candidate, found.get(draft.candidate.variant)))
        for draft in drafts
    ]
