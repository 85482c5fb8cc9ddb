"""One of the two products of a mixture of experts: which slots a program takes, and what it multiplies them with.

A slot is a token and one of its experts. A program multiplies some rows of one expert's weight, those of a gate and of
what it gates together, by the activations of a tile of slots of that expert:

    single    one slot, in the way of linears of one row
    alone     one slot, in a matrix unit of which it fills one column
    grouped   slots of one expert that the program finds among few by itself: the first of them leads
    sorted    slots of one expert, from an order that a kernel before has made
"""

from dataclasses import dataclass

from llmc.codegen.layout import Buffer, View
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import KernelText
from llmc.codegen.triton.linear_formats import FORMS, Form
from llmc.codegen.triton.linear_operands import Tile, Weights
from llmc.codegen.triton.linear_single import SingleRow, SingleTiling
from llmc.codegen.triton.linear_source import At
from llmc.codegen.triton.linear_tiles import FEW, Tiling
from llmc.ir.packed_layout import TILE, tile_count

EIGHT = 8
"""Rows of one set that follow each other in a program: threads have the sums of both sets."""


@dataclass(frozen=True)
class Product:
    """A weight of each expert, and the rows that it is multiplied with."""

    kind: str
    """up or down."""
    weights: tuple[str, ...]
    format: str
    rows: int
    """Of an expert's weight."""
    k: int
    bias: View | None
    source: Buffer
    target: Buffer
    sets: int
    """2 where each program has rows of the gate and those of what it gates."""
    share: int
    """Slots that have one row of the source."""
    experts: int

    @property
    def form(self) -> Form:
        """How the weight lies in memory."""
        return FORMS[self.format]

    @property
    def outputs(self) -> int:
        """Results of a slot."""
        return self.rows // self.sets


class ProductKernel:
    """The kernel of one tiling; lines before `multiply` set `expert`, `slot` and, but for a single slot, `live`."""

    def __init__(self, kernel: KernelText, product: Product, tiling: Tiling | SingleTiling, context: Context) -> None:
        self.kernel, self.product, self.tiling = kernel, product, tiling
        self.plain = context.target.kind != "cuda"
        self.single = isinstance(tiling, SingleTiling)
        self.mine = tiling.rows // product.sets if isinstance(tiling, SingleTiling) else tiling.owned
        self.ragged = product.outputs % self.mine != 0
        kernel.warps, kernel.stages = tiling.warps, tiling.stages
        kernel.matrix_units = product.form.multiplied != "float32"
        kernel.most_barriers = 6

    def multiply(self) -> None:
        """Add lines that set `sum_0` and, of two sets, `sum_1`: [outputs, slots], or [outputs] of a single slot."""
        product, add, mine = self.product, self.kernel.add, self.mine
        padded = tile_count(product.rows) * TILE
        total = mine * product.sets
        add(f"place = tl.arange(0, {total})")
        inner = f"place // {2 * EIGHT} * {EIGHT} + place % {EIGHT}" if product.sets == 2 else "place"
        index = f"tl.program_id(1) * {mine} + {inner}"
        add(f"known = tl.minimum({index}, {product.outputs - 1})" if self.ragged else f"known = {index}")
        second = f" + place // {EIGHT} % 2 * {product.outputs}" if product.sets == 2 else ""
        add(f"row = expert * {padded} + known{second}")
        if isinstance(self.tiling, SingleTiling):
            self._single(self.tiling, product.experts * padded)
            name, tail = "found", ""
        else:
            self._tiles(self.tiling, product.experts * padded)
            name, tail = "total", f", {self.tiling.rows}"
        add(f"n = tl.program_id(1) * {mine} + tl.arange(0, {mine})")
        if product.sets == 1:
            add(f"sum_0 = {name}")
            return
        order = "(0, 2, 3, 1)" if tail else "(0, 2, 1)"
        add(f"sum_0, sum_1 = tl.split(tl.permute(tl.reshape({name}, ({mine // EIGHT}, 2, {EIGHT}{tail})), {order}))")
        add(*(f"{part} = tl.reshape({part}, ({mine}{tail or ','}))" for part in ("sum_0", "sum_1")))

    @property
    def _row(self) -> str:
        """Where the row of a slot begins."""
        product = self.product
        pointer = self.kernel.pointer(product.source, "source" if product.kind == "up" else "hidden")
        return f"{pointer} + {f'slot // {product.share}' if product.share > 1 else 'slot'} * {product.k}"

    def _single(self, tiling: SingleTiling, n: int) -> None:
        product, kernel = self.product, self.kernel
        row = SingleRow(kernel, product.form, product.weights, n, product.k, tiling, plain=self.plain)
        kernel.weight_bits = product.form.stored_bits
        row.define()
        kernel.add(f"x_row = {self._row}")

        def read(at: At, pad: str) -> None:
            mask = f", mask={at.known}, other=0.0" if at.known else ""
            wide = "" if product.source.dtype == "f32" else ".to(tl.float32)"
            kernel.add(f"{pad}x = tl.load(x_row + {at.column}{mask}){wide}")

        row.multiply(read)

    def _tiles(self, tiling: Tiling, n: int) -> None:
        product, kernel, form = self.product, self.kernel, self.product.form
        tile = Tile(tiling.batch, self.mine * product.sets, tiling.joined)
        units, step, pad = form.units(product.k), tiling.batch * tiling.joined, "    "
        scaled = tiling.rows > FEW and form.group > 0 and "mins" not in form.parts
        kernel.round_bytes, kernel.rounds = form.tile_bytes(tile.rows * step), -(-units // step)
        kernel.weight_bits = 0 if tiling.blocks else form.stored_bits
        if tiling.batch > 1:
            kernel.add(f"unit = tl.arange(0, {tiling.batch})")
        weights = Weights(kernel, form, product.weights, n, product.k, tile, 0, plain=self.plain)
        weights.point("row")
        sizes = ", ".join(map(str, (*([tiling.batch] * (tiling.batch > 1)), tile.rows, tiling.rows)))
        kernel.add(f"sum_0 = tl.zeros([{sizes}], tl.float32)", f"x_row = ({self._row}){tile.last}")
        kernel.add(f"for u in tl.range(0, {units}, {step}, num_stages={tiling.stages}):")
        known = ""
        if units % step:
            known = "u" if tiling.joined > 1 else "there"
            kernel.add(*([f"{pad}there = u + unit < {units}"] if tiling.joined == 1 else []))
        weights.read("u", known, pad)
        if scaled:
            weights.scale(pad)
        start = f"u * {form.unit}" if tile.batch == 1 else f"(u + unit{tile.unit()}) * {form.unit}"
        inside = f"live{tile.last}" + (f" & (column < {product.k})" if product.k % (form.unit * step) else "")
        source = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[product.source.dtype]
        rounded = "" if form.multiplied == source else f".to(tl.{form.multiplied})"
        for number, piece in enumerate(weights.pieces):
            place = f"tl.arange(0, {piece.columns * tile.joined})"
            if tile.joined > 1:
                place = f"{place} // {piece.columns} * {form.unit} + {place} % {piece.columns}"
            kernel.add(f"{pad}column = {start} + ({piece.offset} + {place}){tile.column}")
            kernel.add(f"{pad}x = tl.load(x_row + column, mask={inside}, other=0.0){rounded}")
            weights.multiply(number, "x", pad, scaled=scaled)
        kernel.add("total = tl.sum(sum_0, 0)" if tiling.batch > 1 else "total = sum_0")
        weights.finish("total", "row[:, None]", "")

    def add_bias(self) -> None:
        """Add lines that add the bias to `sum_0` and `sum_1`."""
        product, kernel = self.product, self.kernel
        if self.ragged:
            kernel.add(f"inside = n < {product.outputs}")
        if product.bias is None:
            return
        bias = kernel.pointer(product.bias.buffer, "bias")
        start = f" + {product.bias.offset}" if product.bias.offset else ""
        mask = ", mask=inside, other=0.0" if self.ragged else ""
        for number in range(product.sets):
            shift = f" + {number * product.outputs}" if number else ""
            text = f"tl.load({bias}{start} + expert * {product.rows} + n{shift}{mask})"
            text = text if product.bias.buffer.dtype == "f32" else f"{text}.to(tl.float32)"
            kernel.add(f"sum_{number} += {text}{'' if self.single else '[:, None]'}")

    def store(self) -> None:
        """Add the line that stores `sum_0`."""
        product, kernel = self.product, self.kernel
        target = kernel.pointer(product.target, "hidden" if product.kind == "up" else "results")
        rounded = {"f32": "", "f16": ".to(tl.float16)", "bf16": ".to(tl.bfloat16)"}[product.target.dtype]
        if self.single:
            mask = ", mask=inside" if self.ragged else ""
            kernel.add(f"tl.store({target} + slot * {product.outputs} + n, sum_0{rounded}{mask})")
            return
        inside = "live[None, :]" + (" & inside[:, None]" if self.ragged else "")
        at = f"{target} + slot[None, :] * {product.outputs} + n[:, None]"
        kernel.add(f"tl.store({at}, sum_0{rounded}, mask={inside})")
