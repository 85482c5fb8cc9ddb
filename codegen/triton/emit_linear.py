"""Kernels of Linear regions: one for each number of rows up to a few, one each for up to 8, 16, 32 and 64, and one
for more."""

from llmc.codegen.regions import Linear
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, rows_of
from llmc.codegen.triton.linear_around import emit_heads, emit_ready, raw_sums
from llmc.codegen.triton.linear_epilogue import finishes
from llmc.codegen.triton.linear_formats import FORMS
from llmc.codegen.triton.linear_gemv import emit_gemv
from llmc.codegen.triton.linear_rows import owned
from llmc.codegen.triton.linear_tiles import emit_tiles
from llmc.codegen.triton.linear_tiling import FUSED, GEMV_ROWS, WIDTHS, flat_tiling, gemm_tiling
from llmc.runtime.cuda.plan import ALWAYS, When


def emit_linear(region: Linear, context: Context) -> list[Draft]:
    """The launches of one region, which between them serve every number of rows."""
    form = FORMS[region.format]
    complete = not region.parts or finishes(region, context)
    raw = None if complete else raw_sums(region, context)
    mine = owned(region, finished=complete)
    symbol = rows_of(region.domain)
    crossover = context.crossover(region.n, region.k, region.format)
    flat = 1 if form.strips or form.name == "fp8" else min(crossover.flat, GEMV_ROWS + 1)
    gemm = max(flat, min(crossover.gemm, WIDTHS[-1] + 1))
    if not symbol:  # there is one row
        flat, gemm = min(flat, 2), 2
    drafts = [
        emit_gemv(region, context, form, mine, rows, When(symbol, rows, rows) if symbol else ALWAYS, raw)
        for rows in range(1, flat)
    ]
    rounded = None
    first = flat
    for width in WIDTHS:
        last = min(width, gemm - 1)
        if first > last:
            continue
        when = When(symbol, first, last) if symbol else ALWAYS
        if width > FUSED and rounded is None:
            rounded, draft = emit_ready(region, context, form, When(symbol, first))
            drafts.append(draft)
        tiling = flat_tiling(form, mine, width, region.k, context.target, ready=rounded is not None)
        drafts.append(emit_tiles(region, context, form, mine, tiling, when, rounded, raw))
        first = last + 1
    if symbol:
        if rounded is None:
            rounded, draft = emit_ready(region, context, form, When(symbol, gemm))
            drafts.append(draft)
        tiling = gemm_tiling(form, mine, context.target)
        drafts.append(emit_tiles(region, context, form, mine, tiling, When(symbol, gemm), rounded, raw))
    return [*drafts, *([emit_heads(region, context, raw)] if raw is not None else [])]
