"""Products of packed weights with one row of activations, in matrix units.

A matrix unit has eight columns for rows of activations. Where there is one row, they serve eight groups of its
columns: column g holds the row in group g and zeros elsewhere, so that the sums of groups come apart by themselves and
are scaled once for eight of them. Levels above a common zero are multiplied as they are, 128 + v, and what that adds
is taken off the sums of groups: products of a matrix of ones are the sums of the row's groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmc.codegen.layout import View
from llmc.codegen.regions import Linear
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.codegen.triton.linear_epilogue import Sums, finish, store_sums
from llmc.codegen.triton.linear_formats import Form
from llmc.codegen.triton.linear_gemv import LANES, describe, wait
from llmc.codegen.triton.linear_operands import Tile, Weights
from llmc.codegen.triton.linear_rows import Owned
from llmc.codegen.triton.linear_source import At, Source
from llmc.runtime.cuda.plan import ONE, Extent, When

COLUMNS = 8
"""Of a matrix unit."""
Read = Callable[[At, str], None]
"""Adds lines that set `x` to the row at some columns; given where, and the indentation."""


@dataclass(frozen=True)
class SingleTiling:
    """What a program multiplies, and how."""

    rows: int
    """Of the weight, of all sets."""
    batch: int
    """Runs of units at once, one for each warp."""
    warps: int
    stages: int


def joined(form: Form) -> int:
    """Units of a run: as many as have a column of a matrix unit for each group."""
    return COLUMNS // form.groups if form.group else 4


class SingleRow:
    """The products of rows of one weight with one row, in a kernel's loop. `row` is the int32 vector of rows."""

    def __init__(
        self, kernel: KernelText, form: Form, names: Sequence[str], n: int, k: int, tiling: SingleTiling, *, plain: bool
    ) -> None:
        """plain: whether the target lacks NVIDIA's instructions."""
        self.kernel, self.form, self.k, self.tiling = kernel, form, k, tiling
        self.tile = Tile(tiling.batch, tiling.rows, joined(form))
        self.weights = Weights(kernel, form, names, n, k, self.tile, 0, plain=plain)
        self.units = form.units(k)
        self.step = tiling.batch * self.tile.joined
        self.width = self.weights.pieces[0].columns * self.tile.joined
        """Columns that are multiplied at once, of a run."""
        kernel.round_bytes = form.tile_bytes(tiling.rows * self.step)
        kernel.rounds = -(-self.units // self.step)

    @property
    def shape(self) -> str:
        """The sizes of a tensor of the row's values that are multiplied at once."""
        return f"{self.tiling.batch}, {self.width}, 1"

    def define(self) -> None:
        """Add the lines before the wait: pointers to the weights of `row`, and which column is of which group."""
        kernel, form, tile = self.kernel, self.form, self.tile
        kernel.add(f"unit = tl.arange(0, {tile.batch})")
        self.weights.point("row")
        columns = self.weights.pieces[0].columns
        kernel.add(f"run = tl.arange(0, {self.width})[None, :, None] // {columns}")
        kernel.add(f"column_0 = unit[:, None, None] * {tile.joined * form.unit} + run * {form.unit}")
        kernel.add(f"column_0 += tl.arange(0, {self.width})[None, :, None] % {columns}")
        kernel.add(f"group = tl.arange(0, {COLUMNS})[None, None, :]")

    def multiply(self, read: Read) -> None:
        """Add the loop, after which `found` holds a sum for each row."""
        kernel, tile, tiling = self.kernel, self.tile, self.tiling
        sums = f"{tiling.batch}, {tiling.rows}, {COLUMNS}"
        kernel.add(f"total = tl.zeros(({sums}), tl.float32)")
        kernel.add(f"for u in tl.range(0, {self.units}, {self.step}, num_stages={tiling.stages}):")
        weights, pad = self.weights, "    "
        known, words = "", ""
        if self.units % self.step:
            size = self.weights.plane * tile.joined
            unit = f"u + unit[:, None, None] * {tile.joined}"
            kernel.add(f"{pad}there = {unit} + tl.arange(0, {size})[None, None, :] // {weights.plane} < {self.units}")
            kernel.add(f"{pad}grouped = {unit} + tl.arange(0, {tile.joined})[None, None, :] < {self.units}")
            known, words = "there", "grouped"
        weights.load("u", known, pad)
        if self._shifted:
            weights.shift(pad)
        elif self.form.group:
            weights.centre(pad)
        tail = self.k % (self.step * self.form.unit) != 0
        for number, piece in enumerate(weights.pieces):
            shift = f" + {piece.offset}" if piece.offset else ""
            kernel.add(f"{pad}column = column_0 + (u * {self.form.unit}{shift})")
            inside = f"(column < {self.k})" if tail else ""
            read(At("column", "0", inside, inside), pad)
            self._spread(number, pad)
        for number in range(len(weights.pieces)):  # after all rows are spread: they pass through shared memory at once
            self._product(number, pad)
        if self.form.group:
            self._scale(words, pad)
        kernel.add("found = tl.sum(tl.sum(total, 0), 1)")
        if self.form.name == "fp8":
            kernel.add(f"found *= tl.load({weights.names['scales']} + row)")

    @property
    def _shifted(self) -> bool:
        return self.form.bits == 4

    def _spread(self, number: int, pad: str) -> None:
        """Add the line that sets `x_<piece>` to a piece of the row, each group in a column of its own."""
        kernel, form, piece = self.kernel, self.form, self.weights.pieces[number]
        group = f"run * {form.groups} + {piece.offset // form.group}" if form.group else "0"
        kernel.add(f"{pad}x_{number} = tl.where({group} == group, x, 0.0).to(tl.bfloat16)")

    def _product(self, number: int, pad: str) -> None:
        kernel, weight = self.kernel, f"weight_0_{number}"
        if not self.form.group:
            kernel.add(f"{pad}total = tl.dot({weight}, x_{number}, total)")
            return
        terms = [("products", weight)]
        if self._shifted:
            shape = f"{self.tiling.batch}, {self.tiling.rows}, {self.width}"
            terms.append(("inputs_of_groups", f"tl.full(({shape}), 1.0, tl.bfloat16)"))
        for name, left in terms:
            kernel.add(f"{pad}{name} = tl.dot({left}, x_{number}{f', {name}' if number else ''})")

    def _scale(self, known: str, pad: str) -> None:
        """Add the lines that scale the sums of eight groups."""
        kernel = self.kernel
        words = self.weights.words("u", known)
        if self.form.groups == COLUMNS:
            kernel.add(f"{pad}factors = {self.weights.side_by_side(known)}")
        else:
            kernel.add(f"{pad}factors = {self._side_by_side(self.weights.halves(words['scales'], pad))}")
        if "zeros" in words:
            zero = kernel.call("weights", "zero_above_128")
            kernel.add(f"{pad}packed = {words['zeros'][0]}")
            texts = [f"{zero}(packed & 255)", f"{zero}((packed >> 8) & 255)"]
            kernel.add(f"{pad}total += factors * (products - inputs_of_groups * {self._side_by_side(texts)})")
            return
        if "mins" in words:
            kernel.add(f"{pad}products -= inputs_of_groups * 128.0")
            kernel.add(
                f"{pad}total += inputs_of_groups * {self._side_by_side(self.weights.halves(words['mins'], pad))}"
            )
        kernel.add(f"{pad}total += factors * products")

    def _side_by_side(self, texts: list[str]) -> str:
        """Numbers of each group of a unit, [runs, rows, units], as a tensor of the groups of runs."""
        while len(texts) > 1:  # what is joined last takes turns first
            half = len(texts) // 2
            texts = [f"tl.join({one}, {other})" for one, other in zip(texts[:half], texts[half:], strict=True)]
        return f"tl.reshape({texts[0]}, ({self.tiling.batch}, {self.tiling.rows}, {COLUMNS}))"


def emit_single(
    region: Linear, context: Context, form: Form, owned: Owned, tiling: SingleTiling, when: When, raw: View | None
) -> Draft:
    """The launch for one row. raw: where sums are stored as they are; None where the kernel finishes them."""
    kernel = KernelText(
        "linear", warps=tiling.warps, stages=tiling.stages, pdl=context.pdl, weight_bits=form.stored_bits,
        matrix_units=True, most_barriers=5,
    )  # fmt: skip
    kernel.comment = f"{describe(region)}: 1 row in matrix units"
    mine = tiling.rows // owned.sets
    row = SingleRow(kernel, form, region.weights, region.n, region.k, tiling, plain=context.target.kind != "cuda")
    _rows(kernel, owned, mine)
    row.define()
    if kernel.pdl:
        for first in owned.first(f"tl.program_id(0) * {mine}"):
            row.weights.prefetch(first, mine)
    wait(kernel)
    source = Source(region.source, region.k)
    if source.statistics:
        source.measure(kernel, "0", "", "", "", 0)
    if source.squares:
        kernel.add(f"squares = tl.zeros(({row.shape}), tl.float32)")

    def read(at: At, pad: str) -> None:
        source.read(kernel, "x", at, "", pad)
        if source.squares:
            kernel.add(f"{pad}squares += x * x")
            source.weigh(kernel, "x", at, pad, few=tiling.batch * row.width < 2 * LANES * tiling.warps)

    row.multiply(read)
    if source.squares:
        kernel.add(f"found *= {source.scale('tl.sum(squares)')}")
    masked = owned.count % mine != 0
    names: tuple[str, ...] = ("found",)
    if owned.sets == 2:
        names = ("y_0", "y_1")
        kernel.add(f"y_0, y_1 = tl.split(tl.trans(tl.reshape(found, (2, {mine}))))")
    kernel.add(f"n = tl.program_id(0) * {mine} + tl.arange(0, {mine})")
    if masked:
        kernel.add(f"owned = n < {owned.count}")
    inside = "owned" if masked else ""
    sums = Sums(names, "n", "0", inside, inside)
    if raw is not None:
        store_sums(kernel, raw, sums)
    else:
        finish(kernel, context, region, owned, sums)
    return Draft(kernel, (Extent(times=-(-owned.count // mine)), ONE, ONE), when)


def _rows(kernel: KernelText, owned: Owned, mine: int) -> None:
    """Add lines that set `row` to the rows of a program: of two sets, the second's after those of the first."""
    place = f"tl.arange(0, {mine * owned.sets})"
    index = f"tl.program_id(0) * {mine} + {place}" + (f" % {mine}" if owned.sets == 2 else "")
    if owned.count % mine:
        index = f"tl.minimum({index}, {owned.count - 1})"
    if owned.sets == 1:
        kernel.add(f"row = {index}")
        return
    kernel.add(f"index = {index}")
    owned.define(kernel, "index")
    first, second = owned.rows("index")
    kernel.add(f"row = tl.where({place} < {mine}, {first}, {second})")
