"""Linears in matrix units: tiles of the weight times tiles of activations.

The weight is the large side of the product, so that few rows of activations (8 or 16) waste little. Its columns are
split over the warps of a program: each multiplies units of its own, and the sums meet once, at the end. Programs can
so be small, and there are enough of them. Where every program would read long rows of activations for few rows of the
weight, several share the columns of a larger tile; the last of them adds up what all have left, in order.
"""

from dataclasses import dataclass

from llmc.codegen.layout import View
from llmc.codegen.regions import Linear
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, KernelText, rows_of
from llmc.codegen.triton.linear_epilogue import Sums, finish, store_sums
from llmc.codegen.triton.linear_formats import Form
from llmc.codegen.triton.linear_gemv import LANES, describe, wait
from llmc.codegen.triton.linear_operands import Tile, Weights
from llmc.codegen.triton.linear_rows import Owned
from llmc.codegen.triton.linear_source import At, Source
from llmc.ir.packed_layout import GROUP
from llmc.runtime.cuda.plan import ONE, Extent, When

FEW = 16
"""Rows up to which sums are scaled for each group; for more it is the weights, which then are rounded once more."""
ROOM = {4: 64, 6: 32}
"""Rows of a weight, by its bits, up to which the sums of a group of 32 columns fit into registers for `MANY` rows, too:
to scale them takes fewer instructions than to scale weights.
"""
MANY = 32
"""Rows up to which it is the reading of weights that takes time; for more it is their products."""
SQUARED = 8
"""Rows up to which squares are added up beside the products: each row's take registers."""


@dataclass(frozen=True)
class Tiling:
    """The tile of a kernel and how it is pipelined."""

    owned: int
    """Indices of a program; rows of the weight for each set."""
    batch: int
    """Units of columns at once, shared out over the warps; 1 where warps share rows instead."""
    rows: int
    """Rows of activations."""
    warps: int
    stages: int
    blocks: bool = False
    """Whether there may be more rows than one program takes."""
    joined: int = 1
    """Units of columns side by side, where `batch` is 1."""
    splits: int = 1
    """Programs that share the columns of a tile."""


def emit_tiles(
    region: Linear,
    context: Context,
    form: Form,
    owned: Owned,
    tiling: Tiling,
    when: When,
    rounded: View | None,
    raw: View | None,
) -> Draft:
    """The launch of one tiling.

    rounded: rows of activations that are ready to be multiplied; None where the kernel makes them of the source.
    raw: where sums are stored as they are; None where the kernel finishes them.
    """
    return _Tiles(region, context, form, owned, tiling, rounded, raw).draft(when)


class _Tiles:
    def __init__(
        self,
        region: Linear,
        context: Context,
        form: Form,
        owned: Owned,
        tiling: Tiling,
        rounded: View | None,
        raw: View | None,
    ) -> None:
        self.region, self.context, self.form, self.owned, self.tiling = region, context, form, owned, tiling
        self.rounded, self.raw = rounded, raw
        few = form.stored_bits if tiling.rows <= MANY and not tiling.blocks else 0
        self.kernel = KernelText(
            "linear", warps=tiling.warps, stages=tiling.stages, pdl=context.pdl,
            weight_bits=few, matrix_units=form.multiplied != "float32", most_barriers=3,
        )  # fmt: skip
        self.merged = rounded is not None and owned.sets == 2
        sets = 1 if self.merged else owned.sets
        self.tile = Tile(tiling.batch, tiling.owned * owned.sets // sets, tiling.joined)
        most = MANY if form.group == GROUP and self.tile.rows <= ROOM.get(form.bits, 0) else FEW
        self.scaled = rounded is not None and tiling.rows > most and form.group > 0 and "mins" not in form.parts
        self.step = tiling.batch * tiling.joined
        self.columns = region.k if rounded is None else form.units(region.k) * form.unit
        self.source = Source(region.source, region.k, form.multiplied == "float16" or tiling.rows > SQUARED)
        self.units = form.units(region.k)
        self.share = self.units // tiling.splits
        assert tiling.splits in (1, self.units // self.share), "programs share the columns evenly"
        self.ragged = self.share % self.step != 0
        names = [(self.kernel, form, region.weights, region.n, region.k, self.tile, s) for s in range(sets)]
        self.weights = [Weights(*name, plain=context.target.kind != "cuda") for name in names]
        self.pieces = self.weights[0].pieces
        if tiling.blocks:  # warps that share rows of activations meet before each piece
            self.kernel.most_barriers = max(6, len(self.pieces) + 2)
        self.kernel.round_bytes = form.tile_bytes(self.step * tiling.owned * owned.sets)
        self.kernel.rounds = -(-self.share // self.step)

    def draft(self, when: When) -> Draft:
        kernel, tiling = self.kernel, self.tiling
        many = "blocks of " if tiling.blocks else "up to "
        shared = f", columns shared by {tiling.splits} programs" if tiling.splits > 1 else ""
        kernel.comment = f"{describe(self.region)}: {many}{tiling.rows} rows in matrix units{shared}"
        masked = self.owned.count % tiling.owned != 0
        self._indices(masked)
        wait(kernel)
        mine = self.source.squares and self.rounded is None
        if self.rounded is None and self.source.statistics:
            self.source.measure(kernel, "t[None, :]", "present[None, :]", "[:, None]", "[None, :]", tiling.rows)
        sums = ", ".join(str(size) for size in (*([tiling.batch] * (tiling.batch > 1)), self.tile.rows, tiling.rows))
        kernel.add(*(f"sum_{s} = tl.zeros(({sums}), tl.float32)" for s in range(len(self.weights))))
        if mine:
            kernel.add(f"squares = tl.zeros(({self._activations()}), tl.float32)")
        bounds = f"0, {self.units}"
        if tiling.splits > 1:
            kernel.add(f"first_unit = tl.program_id(1) * {self.share}")
            bounds = f"first_unit, first_unit + {self.share}"
        kernel.add(f"for u in tl.range({bounds}, {self.step}, num_stages={tiling.stages}):")
        self._loop("    ", mine)
        self._finish(mine, masked)
        programs = Extent(times=-(-self.owned.count // tiling.owned))
        if tiling.blocks:
            return Draft(kernel, (Extent(rows_of(self.region.domain), tiling.rows), programs, ONE), when)
        return Draft(kernel, (programs, Extent(times=tiling.splits), ONE), when)

    def _indices(self, masked: bool) -> None:
        kernel, tiling, count = self.kernel, self.tiling, self.owned.count
        axis = 1 if tiling.blocks else 0
        if not self.merged:
            kernel.add(f"n = tl.program_id({axis}) * {tiling.owned} + tl.arange(0, {tiling.owned})")
        first = f"tl.program_id(0) * {tiling.rows} + " if tiling.blocks else ""
        kernel.add(f"t = ({first}tl.arange(0, {tiling.rows})).to(tl.int64)")
        symbol = rows_of(self.region.domain)
        kernel.add(f"present = t < {kernel.size(symbol) if symbol else 1}")
        index = "n"
        if self.merged:
            kernel.add(f"place = tl.arange(0, {self.tile.rows})")
            index = f"tl.program_id({axis}) * {tiling.owned} + place // 16 * 8 + place % 8"
            kernel.add(f"known = {f'tl.minimum({index}, {count - 1})' if masked else index}")
            index = "known"
        elif masked:
            kernel.add(f"known = tl.minimum(n, {count - 1})")
            index = "known"
        if tiling.batch > 1:
            kernel.add(f"unit = tl.arange(0, {tiling.batch})")
        self.owned.define(kernel, index)
        rows = self.owned.rows(index)
        if self.merged:  # eight rows of one set, and eight of the other: threads have both sums of an index
            kernel.add(f"row = tl.where(place // 8 % 2 == 0, {rows[0]}, {rows[1]})")
            rows = ("row",)
        for weights, row in zip(self.weights, rows, strict=True):
            weights.point(row)
        if kernel.pdl and not tiling.blocks:
            for number, first in enumerate(self.owned.first(f"tl.program_id(0) * {tiling.owned}")):
                self.weights[0 if self.merged else number].prefetch(first, tiling.owned, tiling.splits)

    def _activations(self) -> str:
        columns = self.pieces[0].columns * self.tile.joined
        sizes = (*([self.tiling.batch] * (self.tiling.batch > 1)), columns, self.tiling.rows)
        return ", ".join(map(str, sizes))

    def _loop(self, pad: str, mine: bool) -> None:
        kernel, tile, form, tiling = self.kernel, self.tile, self.form, self.tiling
        known = ""
        if self.ragged and tile.joined > 1:
            known = "u"
        elif self.ragged:
            kernel.add(f"{pad}there = u + unit < {self.units}")
            known = "there"
        for weights in self.weights:
            weights.read("u", known, pad)
            if self.scaled:
                weights.scale(pad)
        tail = self.columns % (form.unit * self.step) != 0
        for number, piece in enumerate(self.pieces):
            start = f"u * {form.unit}" if tile.batch == 1 else f"(u + unit{tile.unit()}) * {form.unit}"
            place = f"tl.arange(0, {piece.columns * tile.joined})"
            if tile.joined > 1:
                place = f"{place} // {piece.columns} * {form.unit} + {place} % {piece.columns}"
            shift = f"{piece.offset} + " if piece.offset else ""
            kernel.add(f"{pad}column = {start} + ({shift}{place}){tile.column}")
            within = f"(column < {self.columns})" if tail else ""
            present = f"present{tile.last}"
            at = At("column", f"t{tile.last}", " & ".join(part for part in (present, within) if part), within)
            if self.rounded is not None:
                self._ready(at, pad)
            else:
                self.source.read(kernel, "x", at, tile.last, pad)
                narrow = mine and form.multiplied == "bfloat16" and self.source.narrow_weight
                if mine:
                    kernel.add(f"{pad}squares += x * x")
                if narrow:
                    kernel.add(f"{pad}x = x.to(tl.bfloat16)")  # pairs are multiplied at once
                if mine:
                    few = piece.columns * self.step < 2 * LANES * tiling.warps
                    self.source.weigh(kernel, "x", at, pad, narrow=narrow, few=few)
                if form.multiplied != "float32" and not narrow:
                    kernel.add(f"{pad}x = x.to(tl.{form.multiplied})")
            for weights in self.weights:
                weights.multiply(number, "x", pad, scaled=self.scaled)

    def _ready(self, at: At, pad: str) -> None:
        assert self.rounded is not None, "there are rows that need nothing done"
        pointer = self.kernel.pointer(self.rounded.buffer, "inputs")
        address = f"{pointer} + {at.row} * {self.rounded.buffer.width} + {at.column}"
        self.kernel.add(f"{pad}x = tl.load({address}, mask={at.inside}, other=0.0)")

    def _finish(self, mine: bool, masked: bool) -> None:
        kernel, tiling = self.kernel, self.tiling
        names = tuple(f"y_{s}" for s in range(len(self.weights)))
        for s, name in enumerate(names):
            kernel.add(f"{name} = tl.sum(sum_{s}, 0)" if self.tiling.batch > 1 else f"{name} = sum_{s}")
        if mine:
            inner = "tl.sum(squares, 0)" if self.tiling.batch > 1 else "squares"
            kernel.add(f"scale = {self.source.scale(f'tl.sum({inner}, 0)')}")
            kernel.add(*(f"{name} *= scale[None, :]" for name in names))
        if self.tiling.splits > 1:
            self._add_up(names)
        if self.merged:
            self.weights[0].finish("y_0", "row[:, None]", "")
            names = ("y_0", "y_1")
            apart = f"tl.reshape(y_0, ({tiling.owned // 8}, 2, 8, {tiling.rows}))"
            kernel.add(f"y_0, y_1 = tl.split(tl.permute({apart}, (0, 2, 3, 1)))")
            kernel.add(*(f"{name} = tl.reshape({name}, ({tiling.owned}, {tiling.rows}))" for name in names))
            axis = 1 if tiling.blocks else 0
            kernel.add(f"n = tl.program_id({axis}) * {tiling.owned} + tl.arange(0, {tiling.owned})")
        if masked:
            kernel.add(f"owned = (n < {self.owned.count})[:, None]")
        kernel.add("n = n[:, None]", "t = t[None, :]", "present = present[None, :]")
        if not self.merged:
            self._scale_rows(names, masked)
        inside = "present & owned" if masked else "present"
        sums = Sums(names, "n", "t", "owned" if masked else "", inside, "present")
        if self.raw is not None:
            store_sums(kernel, self.raw, sums)
        else:
            finish(kernel, self.context, self.region, self.owned, sums)

    def _add_up(self, names: tuple[str, ...]) -> None:
        """Add lines after which the last program of a tile goes on, with the sums of all that share its columns."""
        kernel, context, splits, sets = self.kernel, self.context, self.tiling.splits, len(names)
        programs = -(-self.owned.count // self.tiling.owned)
        sizes = f"{self.tile.rows}, {self.tiling.rows}"
        room = programs * splits * sets * self.tile.rows * self.tiling.rows * 4
        parts = kernel.workspace(context.workspace("linear_parts", room), "*fp32")
        counters = kernel.workspace(context.workspace("linear_counters", programs * 4), "*i32")
        store, add_up = kernel.call("parts", "store_part"), kernel.call("parts", "sum_of_parts")
        kernel.add(f"part = tl.program_id(0) * {splits * sets}")
        for s, name in enumerate(names):
            kernel.add(f"{store}({parts}, part + tl.program_id(1) * {sets} + {s}, {name}, {sizes})")
        kernel.add(f"if not {kernel.call('attention', 'is_last')}({counters}, tl.program_id(0), {splits}):")
        kernel.add("    return")
        for s, name in enumerate(names):
            kernel.add(f"{name} = {add_up}({parts}, part + {s}, {sets}, {splits}, {sizes})")

    def _scale_rows(self, names: tuple[str, ...], masked: bool) -> None:
        if self.owned.half:
            self.kernel.add("row_0 = row_0[:, None]", "row_1 = row_1[:, None]")
        elif self.owned.sets == 2:
            self.kernel.add("row_1 = row_1[:, None]")
        for weights, name, row in zip(self.weights, names, self.owned.rows("n"), strict=True):
            weights.finish(name, row, "owned" if masked else "")
