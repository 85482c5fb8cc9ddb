"""Mixtures of experts: both products of each slot (a token and one of its experts), then their weighted sums.

A program multiplies some rows of one expert by the activations of a tile of its slots: of one slot where tokens are
few, otherwise of many, sorted by expert on the device. Sums have the order of a token's slots, whatever the tiles.
"""

from dataclasses import dataclass, replace

from llmc.codegen.layout import Buffer, View
from llmc.codegen.regions import Experts
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_linear import choose
from llmc.codegen.triton.kernel import Draft, KernelText, rows_of
from llmc.codegen.triton.linear_formats import FORMS
from llmc.codegen.triton.linear_operands import Tile, Weights
from llmc.ir.packed_layout import TILE, tile_count
from llmc.runtime.crossover import Crossover, experts_key
from llmc.runtime.cuda.plan import ONE, Candidate, Extent, When

FEW = 16
"""Tokens up to which each slot is a tile, unless it was measured: their experts are mostly different ones."""
ESTIMATED = Crossover(1, FEW + 1, "estimated: the experts of few tokens are mostly different ones")
MANY_FROM = 2
"""The fewest tokens that may be sorted by expert."""
_SORTED = 1024
"""Slots that a program of the sort looks at at once."""
_SUMMED = 512
"""Columns of a token that a program sums."""


@dataclass(frozen=True)
class _Tiling:
    """What a program multiplies."""

    slots: int
    """Of one expert; for a tile of one slot the columns of a matrix unit."""
    rows: int
    """Of the weight, in each set."""
    batch: int
    """Units of columns at once, shared out over the warps; 1 where warps share rows instead."""
    alone: bool
    """Whether a tile is one slot."""


def emit_experts(region: Experts, context: Context) -> list[Draft]:
    """The launches of one region."""
    return _Mixture(region, context).drafts()


@dataclass(frozen=True)
class _Product:
    """One of the two products: a weight of each expert, and the rows that it is multiplied with."""

    kind: str
    weights: tuple[str, ...]
    format: str
    rows: int
    """Outputs of an expert."""
    k: int
    bias: View | None
    source: Buffer
    target: Buffer
    sets: int
    """2 where each program has a row of the gate and one of the part that it is multiplied with."""

    @property
    def outputs(self) -> int:
        return self.rows // self.sets


class _Mixture:
    def __init__(self, region: Experts, context: Context) -> None:
        self.region, self.context = region, context
        attrs = region.attrs
        self.chosen, self.size, self.width = region.ids.elements, region.source.elements, _number(attrs["width"])
        self.experts = _number(attrs["experts"])
        for view in (region.source, region.ids, region.gates, region.output):
            assert view.is_contiguous and not view.offset and not view.indirect, "it was stored as it is"
        scratch, domain = context.scratch, region.domain
        self.hidden = scratch("hidden", domain, self.chosen * self.width, "f32")
        self.results = scratch("results", domain, self.chosen * self.size, "f32")
        self.order = scratch("order", domain, self.chosen, "i64")
        self.counts = scratch("counts", "", self.experts, "i64")
        sets = 2 if attrs["gated"] else 1
        self.up = _Product(
            "up", region.up, str(attrs["up_format"]), sets * self.width, self.size, region.up_bias,
            region.source.buffer, self.hidden, sets,
        )  # fmt: skip
        self.down = _Product(
            "down", region.down, str(attrs["down_format"]), self.size, self.width, region.down_bias,
            self.hidden, self.results, 1,
        )  # fmt: skip

    def drafts(self) -> list[Draft]:
        symbol = rows_of(self.region.domain)
        each, every = Extent(symbol, times=self.chosen), When(symbol)
        products = (self.up, self.down)
        alone = [self._product(product, _alone(product), each, every) for product in products]
        if not symbol:
            return [*alone, self._sums(every)]
        together = [self._sort(every)]
        for product in products:
            tiling = _together(product)
            tiles = Extent(symbol, per=tiling.slots, times=self.chosen, more=self.experts)
            together.append(self._product(product, tiling, tiles, every))
        key = experts_key(self.experts, self.up.rows, self.up.k, self.up.format)
        few, many = Candidate(key, "flat", 1, None), Candidate(key, "gemm", MANY_FROM, None)
        drafts = [replace(draft, candidate=few) for draft in alone]
        drafts += [replace(draft, candidate=many) for draft in together]
        return [*choose(drafts, self.context.estimated(key, ESTIMATED)), self._sums(every)]

    def _kernel(self, kind: str, comment: str, warps: int) -> KernelText:
        kernel = KernelText(kind, comment, warps=warps, stages=3, pdl=self.context.pdl)
        if self.context.pdl:
            kernel.add("tl.extra.cuda.gdc_wait()", "tl.extra.cuda.gdc_launch_dependents()")
        return kernel

    def _sort(self, when: When) -> Draft:
        kernel = self._kernel("experts_sort", f"slots by expert, of {self.experts}", 4)
        function, size = kernel.call("experts", "sort_slots"), kernel.size(rows_of(self.region.domain))
        ids = kernel.pointer(self.region.ids.buffer, "ids")
        order, counts = kernel.pointer(self.order, "order"), kernel.pointer(self.counts, "counts")
        kernel.add(f"{function}({ids}, {size} * {self.chosen}, tl.program_id(0), {order}, {counts}, {_SORTED})")
        return Draft(kernel, (Extent(more=self.experts - 1), ONE, ONE), when)

    def _product(self, product: _Product, tiling: _Tiling, tiles: Extent, when: When) -> Draft:
        slots = "one slot" if tiling.alone else f"up to {tiling.slots} slots of one expert"
        of = f"{self.experts} experts of {product.format} [{product.rows}, {product.k}]"
        kernel = self._kernel(f"experts_{product.kind}", f"{of}: {slots} at once", 4)
        kernel.matrix_units = FORMS[product.format].multiplied != "float32"
        if tiling.alone:
            ids = kernel.pointer(self.region.ids.buffer, "ids")
            kernel.add(
                f"slot = tl.program_id(0) + tl.zeros([{tiling.slots}], tl.int64)",
                f"live = tl.arange(0, {tiling.slots}) == 0",
                f"expert = tl.load({ids} + tl.program_id(0)).to(tl.int32)",
            )
        else:
            self._take_tile(kernel, tiling.slots)
        kernel.add(f"n = tl.program_id(1) * {tiling.rows} + tl.arange(0, {tiling.rows})")
        if product.outputs % tiling.rows:
            kernel.add(f"known = tl.minimum(n, {product.outputs - 1})")
        self._multiply(kernel, product, tiling, "known" if product.outputs % tiling.rows else "n")
        self._store(kernel, product, tiling)
        return Draft(kernel, (tiles, Extent(times=-(-product.outputs // tiling.rows)), ONE), when)

    def _take_tile(self, kernel: KernelText, slots: int) -> None:
        counts, order = kernel.pointer(self.counts, "counts"), kernel.pointer(self.order, "order")
        padded = 1 << (self.experts - 1).bit_length()
        function = kernel.call("experts", "slots_of_tile")
        kernel.add(
            f"expert, first, left = {function}({counts}, tl.program_id(0), {self.experts}, {padded}, {slots})",
            f"if expert == {self.experts}:",
            "    return",
            f"live = tl.arange(0, {slots}) < left",
            f"slot = tl.load({order} + first + tl.arange(0, {slots}), mask=live, other=0)",
        )

    def _multiply(self, kernel: KernelText, product: _Product, tiling: _Tiling, known: str) -> None:
        """Add lines that set `sum_0` and, of two sets, `sum_1` to the products [rows, slots]."""
        form, tile = FORMS[product.format], Tile(tiling.batch, tiling.rows)
        padded, units = tile_count(product.rows) * TILE, form.units(product.k)
        sizes = ", ".join(map(str, (*([tiling.batch] * (tiling.batch > 1)), tiling.rows, tiling.slots)))
        if tiling.batch > 1:
            kernel.add(f"unit = tl.arange(0, {tiling.batch})")
        sets = []
        plain = self.context.target.kind != "cuda"
        for number in range(product.sets):
            total = self.experts * padded
            sets.append(Weights(kernel, form, product.weights, total, product.k, tile, number, plain=plain))
            shift = f" + {number * product.outputs}" if number else ""
            kernel.add(f"row_{number} = expert * {padded} + {known}{shift}")
            sets[-1].point(f"row_{number}")
            kernel.add(f"sum_{number} = tl.zeros([{sizes}], tl.float32)")
        pointer = kernel.pointer(product.source, "source" if product is self.up else "hidden")
        row = f"slot // {self.chosen}" if product is self.up else "slot"
        kernel.add(f"x_row = ({pointer} + {row} * {product.k}){tile.last}")
        kernel.add(f"for u in range(0, {units}, {tiling.batch}):")
        there = "there" if units % tiling.batch else ""
        if there:
            kernel.add(f"    there = u + unit < {units}")
        for weights in sets:
            weights.read("u", there, "    ")
        start = f"u * {form.unit}" if tile.batch == 1 else f"(u + unit{tile.unit()}) * {form.unit}"
        inside = f"live{tile.last}" + (f" & (column < {product.k})" if product.k % (form.unit * tiling.batch) else "")
        rounded = "" if form.multiplied == "float32" else f".to(tl.{form.multiplied})"
        for number, piece in enumerate(sets[0].pieces):
            kernel.add(
                f"    column = {start} + ({piece.offset} + tl.arange(0, {piece.columns})){tile.column}",
                f"    x = tl.load(x_row + column, mask={inside}, other=0.0){rounded}",
            )
            for weights in sets:
                weights.multiply(number, "x", "    ")
        for number, weights in enumerate(sets):
            if tiling.batch > 1:
                kernel.add(f"sum_{number} = tl.sum(sum_{number}, 0)")
            weights.finish(f"sum_{number}", f"row_{number}[:, None]", "")

    def _store(self, kernel: KernelText, product: _Product, tiling: _Tiling) -> None:
        if product.bias is not None:
            bias = kernel.pointer(product.bias.buffer, "bias")
            start = f" + {product.bias.offset}" if product.bias.offset else ""
            for number in range(product.sets):
                shift = f" + {number * product.outputs}" if number else ""
                known = "known" if product.outputs % tiling.rows else "n"
                text = f"tl.load({bias}{start} + expert * {product.rows} + {known}{shift})"
                text = text if product.bias.buffer.dtype == "f32" else f"{text}.to(tl.float32)"
                kernel.add(f"sum_{number} += {text}[:, None]")
        if product is self.up:
            self._activate(kernel)
        inside = "live[None, :]"
        if product.outputs % tiling.rows:
            inside += f" & (n < {product.outputs})[:, None]"
        target = kernel.pointer(product.target, "hidden" if product is self.up else "results")
        kernel.add(f"tl.store({target} + slot[None, :] * {product.outputs} + n[:, None], sum_0, mask={inside})")

    def _activate(self, kernel: KernelText) -> None:
        attrs = self.region.attrs
        act = kernel.call("numbers", str(attrs["act"]))
        if not attrs["gated"]:
            kernel.add(f"sum_0 = {act}(sum_0)")
            return
        limit, offset = float(str(attrs["limit"])), float(str(attrs["up_offset"]))
        if limit > 0:
            least, most = kernel.call("numbers", "minimum"), kernel.call("numbers", "maximum")
            kernel.add(f"sum_0 = {least}(sum_0, {limit!r})", f"sum_1 = {most}({least}(sum_1, {limit!r}), -{limit!r})")
        kernel.add(f"sum_0 = {act}(sum_0) * " + (f"(sum_1 + {offset!r})" if offset else "sum_1"))

    def _sums(self, when: When) -> Draft:
        kernel = self._kernel("experts_sum", f"weighted sums of {self.chosen} results each", 4)
        results, gates = kernel.pointer(self.results, "results"), kernel.pointer(self.region.gates.buffer, "gates")
        target = kernel.pointer(self.region.output.buffer, "y")
        block = min(_SUMMED, 1 << (self.size - 1).bit_length())
        mask = f", mask=column < {self.size}" if self.size % block else ""
        other = f"{mask}, other=0.0" if mask else ""
        kernel.add(
            "row = tl.program_id(0).to(tl.int64)",
            f"column = tl.program_id(1) * {block} + tl.arange(0, {block})",
            f"total = tl.zeros([{block}], tl.float32)",
            f"for place in range({self.chosen}):",
            f"    slot = row * {self.chosen} + place",
            f"    total += tl.load({results} + slot * {self.size} + column{other}) * tl.load({gates} + slot)",
            f"tl.store({target} + row * {self.size} + column, total{mask})",
        )
        symbol = rows_of(self.region.domain)
        return Draft(kernel, (Extent(symbol), Extent(times=-(-self.size // block)), ONE), when)


def _alone(product: _Product) -> _Tiling:
    """Few rows of a weight in a program, so that there are enough programs."""
    return _Tiling(8, 16, 1 if FORMS[product.format].multiplied == "float32" else 4, alone=True)


def _together(product: _Product) -> _Tiling:
    form = FORMS[product.format]
    wide = form.multiplied == "float32" or form.unit > 128  # more would not fit into registers
    return _Tiling(32, (32 if wide else 64) // product.sets, 1, alone=False)


def _number(value: object) -> int:
    assert isinstance(value, int), f"{value!r} is a size"
    return value
