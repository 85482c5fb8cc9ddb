"""Linears of many rows as one product by a vendor's library, with a kernel before it that unpacks the weight, where it
is packed, and one after it that turns sums into results, where they are not what is wanted."""

from dataclasses import dataclass

from llmc.codegen.layout import View
from llmc.codegen.regions import Linear
from llmc.codegen.select import why_no_library
from llmc.codegen.target import Target
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, KernelText, Ref, rows_of
from llmc.codegen.triton.linear_around import STORED
from llmc.codegen.triton.linear_epilogue import Sums, finish
from llmc.codegen.triton.linear_formats import Form, padded_rows
from llmc.codegen.triton.linear_gemv import describe, wait
from llmc.codegen.triton.linear_operands import Tile, Weights
from llmc.codegen.triton.linear_rows import Owned
from llmc.ir.packed_layout import TILE
from llmc.runtime.cuda.plan import ALWAYS, NUMBER_BYTES, ONE, Argument, Candidate, Extent, Number, Symbol, When

BLOCK = 1024
"""Results of a row that a program finishes."""
COLUMNS = 512
"""Columns of 16 rows that a program unpacks."""


@dataclass(frozen=True)
class ProductDraft:
    """A product before memory is given."""

    weight: Ref
    inputs: Ref
    sums: Ref
    dtype: Number
    n: int
    k: int
    stride: int
    rows: Symbol
    when: When = ALWAYS
    candidate: Candidate | None = None
    """Of which variant of a linear it is, where there are several."""

    @property
    def refs(self) -> tuple[Ref, ...]:
        """What it reads and writes."""
        return self.weight, self.inputs, self.sums


def multiplies(region: Linear, form: Form, target: Target) -> bool:
    """Whether a region has this variant."""
    return not why_no_library(form.name, region.domain, target)


def packed(form: Form) -> bool:
    """Whether weights are unpacked before they are multiplied."""
    return form.strips or form.name == "fp8"


def emit_library(
    region: Linear, context: Context, form: Form, owned: Owned, rounded: View, raw: View | None
) -> list[Draft | ProductDraft]:
    """The launches and the product, in their order.

    rounded: rows of activations that are ready to be multiplied. raw: where sums are stored as they are; None where
    they are finished here.
    """
    made: list[Draft | ProductDraft] = []
    weight = Ref(argument=Argument("weight", region.weights[0]))
    if packed(form):
        weight, draft = _unpacked(region, context, form)
        made.append(draft)
    target = raw or (region.target if _in_place(region) else None)
    if target is None:  # a workspace: programs without a library have no memory for it
        sums = Ref(argument=Argument("workspace", context.workspace("products", 0, 4 * region.n)))
    else:
        sums = Ref(argument=Argument("logits")) if target.buffer.place == "logits" else Ref(target.buffer)
    made.append(
        ProductDraft(
            weight, Ref(rounded.buffer), sums, STORED[form.multiplied], region.n, form.units(region.k) * form.unit,
            target.buffer.width if target else region.n, rows_of(region.domain),
        )
    )  # fmt: skip
    if raw is None and (target is None or region.bias is not None or region.chain):
        made.append(_finished(region, context, owned, target))
    return made


def _in_place(region: Linear) -> bool:
    """Whether the sums of a row lie where its results will."""
    target = region.target
    return (
        target is not None
        and not region.gate
        and target.domain == region.domain
        and not target.indirect
        and target.is_contiguous
        and (target.offset, target.elements, target.buffer.width) == (0, region.n, region.n)
        and target.buffer.dtype == "f32"
        and target.buffer.place in ("arena", "logits")
    )


def _unpacked(region: Linear, context: Context, form: Form) -> tuple[Ref, Draft]:
    """Where the weight lies row after row in 16 bits each, and the launch that puts it there."""
    width, units = form.units(region.k) * form.unit, form.units(region.k)
    dtype = STORED[form.multiplied]
    name = context.workspace("unpacked", padded_rows(region.n) * width * NUMBER_BYTES[dtype])
    kernel = KernelText("unpack", warps=4, stages=1, pdl=context.pdl)  # what it writes takes longer than what it reads
    kernel.comment = f"{region.format} [{region.n}, {region.k}] as {form.multiplied}"
    batch = max(1, COLUMNS // form.unit)
    tile = Tile(batch, TILE)
    kernel.add(
        f"row = tl.program_id(0) * {TILE} + tl.arange(0, {TILE})", f"unit = tl.arange(0, {batch})",
        f"u = tl.program_id(1) * {batch}",
    )  # fmt: skip
    known = "there" if units % batch else ""
    if known:
        kernel.add(f"there = u + unit < {units}")
    plain = context.target.kind != "cuda"
    weights = Weights(kernel, form, region.weights, region.n, region.k, tile, 0, plain=plain)
    weights.point("row")
    weights.read("u", known, "")
    values = [weights.value(number, "row") for number in range(len(weights.pieces))]
    wait(kernel)  # only what is written follows
    target = kernel.workspace(name, f"*{'bf16' if dtype == 'bf16' else 'fp16'}")
    spread = tile.unit() if batch > 1 else ""
    for piece, value in zip(weights.pieces, values, strict=True):
        column = f"(u + unit{spread}) * {form.unit} + ({piece.offset} + tl.arange(0, {piece.columns})){tile.last}"
        at = f"{target} + (row.to(tl.int64){tile.row()} * {width} + {column})"
        mask = f", mask={known}{spread}" if known else ""
        kernel.add(f"tl.store({at}, ({value}).to(tl.{form.multiplied}){mask})")
    grid = (Extent(times=padded_rows(region.n) // TILE), Extent(times=-(-units // batch)), ONE)
    return Ref(argument=Argument("workspace", name)), Draft(kernel, grid)


def _finished(region: Linear, context: Context, owned: Owned, sums: View | None) -> Draft:
    """The launch that turns sums into results. A program has a block of the results of one row.

    sums: where they lie among the results; None for the workspace.
    """
    kernel = KernelText("finish", warps=4, stages=1, pdl=context.pdl)
    kernel.comment = f"results of a product: {describe(region)}"
    kernel.add("t = tl.program_id(0).to(tl.int64)", f"n = tl.program_id(1) * {BLOCK} + tl.arange(0, {BLOCK})")
    masked = "owned" if owned.count % BLOCK else ""
    if masked:
        kernel.add(f"owned = n < {owned.count}")
    owned.define(kernel, "n")
    wait(kernel)
    pointer = kernel.workspace("products", "*fp32") if sums is None else kernel.pointer(sums.buffer, "sums")
    mask = f", mask={masked}, other=0.0" if masked else ""
    names = tuple(f"y_{s}" for s in range(owned.sets))
    for name, row in zip(names, owned.rows("n"), strict=True):
        kernel.add(f"{name} = tl.load({pointer} + t * {region.n} + {row}{mask})")
    finish(kernel, context, region, owned, Sums(names, "n", "t", masked, masked))
    symbol = rows_of(region.domain)
    return Draft(kernel, (Extent(symbol), Extent(times=-(-owned.count // BLOCK)), ONE))


__all__ = ["ProductDraft", "emit_library", "multiplies", "packed"]
