"""Linears for a row or a few on a GPU's ordinary lanes: each warp reads some rows of the weight, once for all."""

from dataclasses import dataclass

from llmc.codegen.layout import View
from llmc.codegen.regions import Linear
from llmc.codegen.target import Target
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.codegen.triton.linear_epilogue import Sums, finish, store_sums
from llmc.codegen.triton.linear_formats import Form, row_stride
from llmc.codegen.triton.linear_rows import Owned
from llmc.codegen.triton.linear_source import At, Source
from llmc.runtime.cuda.plan import ONE, Extent, When

LANES = 32
AHEAD = 1.5e-6
"""Seconds of what memory delivers that should be asked for: beyond its latency, as programs do not start together."""
MOST_UNDER_WAY = 44 << 10
"""Bytes of it for which the registers of a multiprocessor have room beside sums."""


@dataclass(frozen=True)
class GemvShape:
    """How a warp reads its rows."""

    columns: int
    """Of a row that are read at once."""
    abreast: int
    """Rows that a load of the warp covers."""
    block: int
    """Indices of a program."""
    ahead: int
    """Loads of each row that are under way."""


def gemv_shape(owned: Owned, stride: int, bits: int, rows: int, target: Target) -> GemvShape:
    """How a warp should read its rows: 16 bytes a lane, so many rows and so far ahead that memory is kept busy.

    Where there are few warps for each multiprocessor, every one reads further ahead.
    """
    span = LANES * 128 // bits
    columns = next(size for size in (span, 128, 64) if stride % size == 0 and size <= span)
    abreast = span // columns
    wide, narrow = (max(1, many // owned.sets) for many in (4, 2))
    each = wide if rows == 1 and owned.count >= 12 * wide * abreast * target.cores else narrow
    block = each * abreast
    warps = max(1, min(16, owned.count // (block * target.cores)))
    under_way = min(MOST_UNDER_WAY, AHEAD * target.bandwidth.value / target.cores)
    wanted = under_way / (warps * each * owned.sets * 512)
    steps = stride // columns
    sizes = [size for size in (1, 2, 3, 4, 6, 8) if steps % size == 0]
    ahead = next((size for size in sizes if size >= wanted), sizes[-1])
    return GemvShape(columns, abreast, block, ahead)


def emit_gemv(
    region: Linear, context: Context, form: Form, owned: Owned, rows: int, when: When, raw: View | None
) -> Draft:
    """The launch for so many rows. Programs are single warps: sums need no memory to meet, and no barrier.

    raw: where sums are stored as they are; None where the kernel finishes them.
    """
    return _Gemv(region, context, form, owned, rows, raw).draft(when)


class _Gemv:
    def __init__(self, region: Linear, context: Context, form: Form, owned: Owned, rows: int, raw: View | None) -> None:
        self.region, self.context, self.owned, self.rows, self.raw = region, context, owned, rows, raw
        self.stride = row_stride(form, region.k)
        shape = gemv_shape(owned, self.stride, form.bits, rows, context.target)
        self.columns, self.block, self.ahead, self.spread = shape.columns, shape.block, shape.ahead, shape.abreast > 1
        self.source = Source(region.source, region.k)
        self.kernel = KernelText(
            "linear", warps=1, stages=1, pdl=context.pdl, weight_bits=form.bits, most_barriers=0
        )  # fmt: skip
        self.element = form.element

    def draft(self, when: When) -> Draft:
        kernel, count = self.kernel, self.owned.count
        kernel.comment = f"{describe(self.region)}: {self.rows} row{'s' if self.rows > 1 else ''} on ordinary lanes"
        kernel.add(f"n = tl.program_id(0) * {self.block} + tl.arange(0, {self.block})")
        index = "n"
        if count % self.block:
            kernel.add(f"owned = n < {count}", f"known = tl.minimum(n, {count - 1})")
            index = "known"
        kernel.add(f"k = tl.arange(0, {self.columns})")
        self.owned.define(kernel, index)
        weight = kernel.weight(self.region.weights[0], "weight", self.element)
        for number, name in enumerate(self.owned.rows(index)):
            kernel.add(f"w_{number} = {weight} + ({name}.to(tl.int64)[:, None] * {self.stride} + k[None, :])")
            for place in range(self.ahead):
                at = f"w_{number} + {place * self.columns}" if place else f"w_{number}"
                kernel.add(f'next_{number}_{place} = tl.load({at}, eviction_policy="evict_first")')
        wait(kernel)
        if self.source.statistics:
            for row in range(self.rows):
                self.source.measure(kernel, str(row), "", "", "", 0)
                kernel.add(*(f"{name}_{row} = {name}" for name in ("mean", "scale")[self.source.op == "rms_norm" :]))
        for row in range(self.rows):
            kernel.add(
                *(f"sum_{number}_{row} = {self._zeros(self.block)}" for number in range(self.owned.sets)),
                *([f"squares_{row} = {self._zeros(self.block if self.spread else 1)}"] if self.source.squares else []),
            )
        width = self.ahead * self.columns
        if self.stride > width:
            kernel.add(f"for start in range(0, {self.stride - width}, {width}):")
            for place in range(self.ahead):
                self._step("start", place, "    ", ahead=True)
        for place in range(self.ahead):
            self._step(str(self.stride - width), place, "", ahead=False)
        for row in range(self.rows):
            self._finish(row, "owned" if count % self.block else "")
        return Draft(kernel, (Extent(times=-(-count // self.block)), ONE, ONE), when)

    def _zeros(self, rows: int) -> str:
        return f"tl.zeros(({rows}, {self.columns}), tl.float32)"

    def _step(self, start: str, place: int, pad: str, *, ahead: bool) -> None:
        kernel = self.kernel
        width, shift = self.ahead * self.columns, place * self.columns
        for number in range(self.owned.sets):
            kernel.add(f"{pad}weight_{number} = next_{number}_{place}.to(tl.float32)")
            if ahead:
                address = f"w_{number} + ({start} + {width + shift})"
                kernel.add(f'{pad}next_{number}_{place} = tl.load({address}, eviction_policy="evict_first")')
        first = f"({start} + {shift})" if ahead else str(int(start) + shift)
        column = f"k[None, :] + {first}" if first != "0" else "k[None, :]"
        if self.spread:  # as many rows as the weight's, so that the layouts are the same
            column = f"tl.broadcast_to({column}, ({self.block}, {self.columns}))"
        kernel.add(f"{pad}column = {column}")
        end = self.stride - width if ahead else int(start) + shift + self.columns
        tail = self.region.k < end
        known = f"(column < {self.region.k})" if tail else ""
        for row in range(self.rows):
            at = At("column", str(row), known, known)
            self.source.read(kernel, "x", at, f"_{row}", pad)
            if self.source.squares:
                kernel.add(f"{pad}squares_{row} += x * x")
                self.source.weigh(kernel, "x", at, pad)
            kernel.add(*(f"{pad}sum_{number}_{row} += x * weight_{number}" for number in range(self.owned.sets)))

    def _finish(self, row: int, inside: str) -> None:
        kernel = self.kernel
        names = tuple(f"y_{number}" for number in range(self.owned.sets))
        kernel.add(*(f"{name} = tl.sum(sum_{number}_{row}, 1)" for number, name in enumerate(names)))
        if self.source.squares:
            kernel.add(f"scale = {self.source.scale(f'tl.sum(squares_{row}, 1)')}")
            kernel.add(*(f"{name} *= scale" for name in names))
        sums = Sums(names, "n", str(row), inside, inside)
        if self.raw is not None:
            store_sums(kernel, self.raw, sums)
        else:
            finish(kernel, self.context, self.region, self.owned, sums)


def wait(kernel: KernelText) -> None:
    """Add the lines after which a kernel may read what its predecessor wrote, and its successor may be launched."""
    if kernel.pdl:
        kernel.add("tl.extra.cuda.gdc_wait()", "tl.extra.cuda.gdc_launch_dependents()")


def describe(region: Linear) -> str:
    """What a linear computes, in a few words."""
    source = "" if isinstance(region.source, View) else f"{region.source.op} and "
    heads = " into heads" if region.parts else ""
    gate = f", {region.gate} of the first half times the second" if region.gate else ""
    return f"{source}{region.format} [{region.n}, {region.k}]{gate}{heads}"
