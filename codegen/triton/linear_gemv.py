"""Linears for a row or a few on a GPU's ordinary lanes: each warp reads some rows of the weight, once for all."""

from llmc.codegen.layout import View
from llmc.codegen.regions import Linear
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.codegen.triton.linear_epilogue import Sums, finish, store_sums
from llmc.codegen.triton.linear_formats import Form, row_stride
from llmc.codegen.triton.linear_rows import Owned
from llmc.codegen.triton.linear_source import At, Source
from llmc.runtime.cuda.plan import ONE, Extent, When

LANES = 32


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
        vector = 128 // form.bits
        # of 64 columns on, the largest part of a row that a warp reads at once and that rows are made of
        self.columns = next(
            size for size in (LANES * vector, 128, 64) if self.stride % size == 0 and size <= LANES * vector
        )
        abreast = LANES * vector // self.columns
        self.block = abreast * max(1, (4 if rows == 1 else 2) // owned.sets)
        self.source = Source(region.source, region.k)
        self.spread = abreast > 1
        self.kernel = KernelText("linear", warps=1, stages=1, pdl=context.pdl)
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
            kernel.add(f'next_{number} = tl.load(w_{number}, eviction_policy="evict_first")')
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
        if self.stride > self.columns:
            kernel.add(f"for start in range(0, {self.stride - self.columns}, {self.columns}):")
            self._step("start", "    ", ahead=True)
        self._step(str(self.stride - self.columns), "", ahead=False)
        for row in range(self.rows):
            self._finish(row, "owned" if count % self.block else "")
        return Draft(kernel, (Extent(times=-(-count // self.block)), ONE, ONE), when)

    def _zeros(self, rows: int) -> str:
        return f"tl.zeros(({rows}, {self.columns}), tl.float32)"

    def _step(self, start: str, pad: str, *, ahead: bool) -> None:
        kernel = self.kernel
        for number in range(self.owned.sets):
            kernel.add(f"{pad}weight_{number} = next_{number}.to(tl.float32)")
            if ahead:
                address = f"w_{number} + ({start} + {self.columns})"
                kernel.add(f'{pad}next_{number} = tl.load({address}, eviction_policy="evict_first")')
        column = f"k[None, :] + {start}" if start != "0" else "k[None, :]"
        if self.spread:  # as many rows as the weight's, so that the layouts are the same
            column = f"tl.broadcast_to({column}, ({self.block}, {self.columns}))"
        kernel.add(f"{pad}column = {column}")
        tail = self.stride != self.region.k and not (ahead and self.region.k > self.stride - self.columns)
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
