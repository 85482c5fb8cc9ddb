"""Mixtures of experts: both products of each slot (a token and one of its experts), then their weighted sums.

Slots of one expert are multiplied together, so that its weights are read once: few are found by the programs
themselves, many are sorted by expert on the device. Sums have the order of a token's slots, whatever the tiles.
"""

from dataclasses import replace

from llmc.codegen.regions import Experts
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_linear import choose
from llmc.codegen.triton.expert_products import Product, ProductKernel
from llmc.codegen.triton.kernel import Draft, KernelText, rows_of
from llmc.codegen.triton.linear_around import STORED
from llmc.codegen.triton.linear_formats import FORMS
from llmc.codegen.triton.linear_rows import Owned
from llmc.codegen.triton.linear_single import SingleTiling
from llmc.codegen.triton.linear_tiles import Tiling
from llmc.codegen.triton.linear_tiling import WARPS, flat_tiling, single_tiling
from llmc.runtime.crossover import Crossover, experts_key
from llmc.runtime.cuda.plan import ONE, Candidate, Extent, When

FEW = 64
"""Tokens up to which programs look for the slots of their expert themselves, unless it was measured."""
SLOTS = 512
"""The most slots among which they do."""
GROUPS = (8, 16)
"""Slots of one expert that are multiplied at once: the least that matrix units take, and its double."""
FULL = 48
"""Slots that experts have on average from which on tiles of many slots are used."""
MANY_FROM = 2
"""The fewest tokens that may be sorted by expert."""
_SORTED = 1024
"""Slots that a program of the sort looks at at once."""
_SUMMED = 512
"""Columns of a token that a program sums, or rounds."""


def emit_experts(region: Experts, context: Context) -> list[Draft]:
    """The launches of one region."""
    return _Mixture(region, context).drafts()


class _Mixture:
    def __init__(self, region: Experts, context: Context) -> None:
        self.region, self.context = region, context
        attrs = region.attrs
        self.chosen, self.size, self.width = region.ids.elements, region.source.elements, _number(attrs["width"])
        self.experts = _number(attrs["experts"])
        for view in (region.source, region.ids, region.gates, region.output):
            assert view.is_contiguous and not view.offset and not view.indirect, "it was stored as it is"
        scratch, domain = context.scratch, region.domain
        sets = 2 if attrs["gated"] else 1
        up, down = str(attrs["up_format"]), str(attrs["down_format"])
        rounded = {format: STORED[FORMS[format].multiplied] for format in (up, down)}
        self.hidden = scratch("hidden", domain, self.chosen * self.width, rounded[down])
        self.results = scratch("results", domain, self.chosen * self.size, "f32")
        self.order = scratch("order", domain, self.chosen, "i64")
        self.counts = scratch("counts", "", self.experts, "i64")
        self.ready = scratch("ready", domain, self.size, rounded[up])
        self.up = Product(
            "up", region.up, up, sets * self.width, self.size, region.up_bias, region.source.buffer, self.hidden, sets,
            self.chosen, self.experts,
        )  # fmt: skip
        self.down = Product(
            "down", region.down, down, self.size, self.width, region.down_bias, self.hidden, self.results, 1, 1,
            self.experts,
        )  # fmt: skip

    def drafts(self) -> list[Draft]:
        symbol, every = rows_of(self.region.domain), When(rows_of(self.region.domain))
        products = (self.up, self.down)
        single = [self._single(product) for product in products]
        if not symbol:
            return [*single, self._sums(every)]
        key = experts_key(self.experts, self.up.rows, self.up.k, self.up.format)
        drafts = [replace(draft, candidate=Candidate(key, "flat", 1, 1)) for draft in single]
        most, first = min(FEW, SLOTS // self.chosen), 2
        for slots in GROUPS:
            last = most if slots == GROUPS[-1] else min(most, slots)
            if last < first:
                continue
            found = Candidate(key, "flat", first, last)
            drafts += [replace(self._grouped(product, slots, last), candidate=found) for product in products]
            first = last + 1
        large = max(MANY_FROM + 1, FULL * self.experts // self.chosen)
        source = self.up.source
        if self.ready.dtype != source.dtype:
            drafts.append(replace(self._round(every), candidate=Candidate(key, "gemm", MANY_FROM, None)))
            source = self.ready
        drafts.append(replace(self._sort(every), candidate=Candidate(key, "gemm", MANY_FROM, None)))
        for least, end, wide in ((MANY_FROM, large - 1, False), (large, None, True)):
            found = Candidate(key, "gemm", least, end)
            for product in (replace(self.up, source=source), self.down):
                drafts.append(replace(self._sorted(product, wide=wide), candidate=found))
        crossover = Crossover(1, most + 1, "estimated: slots of one expert are few enough to be looked for")
        return [*choose(drafts, self.context.estimated(key, crossover)), self._sums(every)]

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

    def _round(self, when: When) -> Draft:
        kernel = self._kernel("experts_rows", f"rows of {self.size} columns, rounded", 4)
        block = min(_SUMMED, 1 << (self.size - 1).bit_length())
        source, target = kernel.pointer(self.up.source, "source"), kernel.pointer(self.ready, "ready")
        mask = f", mask=column < {self.size}" if self.size % block else ""
        kernel.add(
            "row = tl.program_id(0).to(tl.int64)",
            f"column = tl.program_id(1) * {block} + tl.arange(0, {block})",
            f"x = tl.load({source} + row * {self.size} + column{mask})",
            f"tl.store({target} + row * {self.size} + column, x.to(tl.{self.up.form.multiplied}){mask})",
        )
        symbol = rows_of(self.region.domain)
        return Draft(kernel, (Extent(symbol), Extent(times=-(-self.size // block)), ONE), when)

    def _single(self, product: Product) -> Draft:
        """The launch where there is one token: all of its slots have experts of their own."""
        form, target = product.form, self.context.target
        owned = Owned(self.chosen * product.outputs, product.sets)
        tiling: Tiling | SingleTiling
        if form.bits <= 8:
            tiling = single_tiling(form, owned, product.k, target)
            lines = ["slot = tl.program_id(0).to(tl.int64)"]
        else:
            tiling = flat_tiling(form, owned, GROUPS[0], product.k, target, ready=product.source.dtype != "f32")
            lines = [
                f"slot = tl.program_id(0) + tl.zeros([{GROUPS[0]}], tl.int64)",
                f"live = tl.arange(0, {GROUPS[0]}) == 0",
            ]
        ids = "tl.load({} + tl.program_id(0)).to(tl.int32)"
        kernel = self._kernel(f"experts_{product.kind}", f"{self._of(product)}: one slot at once", 4)
        kernel.add(*lines, f"expert = {ids.format(kernel.pointer(self.region.ids.buffer, 'ids'))}")
        return self._draft(kernel, product, tiling, Extent(rows_of(self.region.domain), times=self.chosen))

    def _grouped(self, product: Product, slots: int, tokens: int) -> Draft:
        """The launch for up to so many tokens: the first of some slots of an expert leads a program of all of them."""
        busy = min(self.experts, max(2, tokens // 2) * self.chosen)
        tiling = flat_tiling(
            product.form, Owned(busy * product.outputs, product.sets), slots, product.k, self.context.target,
            ready=product.source.dtype != "f32",
        )  # fmt: skip
        comment = f"{self._of(product)}: up to {slots} slots of one expert at once, of {tokens} tokens"
        kernel = self._kernel(f"experts_{product.kind}", comment, 4)
        ids, size = kernel.pointer(self.region.ids.buffer, "ids"), kernel.size(rows_of(self.region.domain))
        before, found = (kernel.call("experts", name) for name in ("slots_before", "slots_from"))
        padded = 1 << (tokens * self.chosen - 1).bit_length()
        kernel.add(
            f"expert, first = {before}({ids}, {size} * {self.chosen}, tl.program_id(0), {padded})",
            f"if first % {slots} != 0:",
            "    return",
            f"slot, live = {found}({ids}, {size} * {self.chosen}, expert, first, {padded}, {slots})",
        )
        return self._draft(kernel, product, tiling, Extent(rows_of(self.region.domain), times=self.chosen))

    def _sorted(self, product: Product, *, wide: bool) -> Draft:
        """The launch for any number of tokens; wide: where experts have many slots each."""
        form = product.form
        slots, rows, warps = (64, 128, 2 * WARPS) if wide and form.multiplied != "float32" else (32, 64, WARPS)
        if form.multiplied == "float32" or form.unit > 128:
            rows //= 2  # more would not fit into registers
        joined = 2 if form.group and form.unit < 128 and "mins" not in form.parts else 1
        tiling = Tiling(rows // product.sets, 1, slots, warps, 3, blocks=True, joined=joined)
        comment = f"{self._of(product)}: up to {slots} slots of one expert at once"
        kernel = self._kernel(f"experts_{product.kind}", comment, warps)
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
        tiles = Extent(rows_of(self.region.domain), per=slots, times=self.chosen, more=self.experts)
        return self._draft(kernel, product, tiling, tiles)

    def _of(self, product: Product) -> str:
        return f"{self.experts} experts of {product.format} [{product.rows}, {product.k}]"

    def _draft(self, kernel: KernelText, product: Product, tiling: Tiling | SingleTiling, tiles: Extent) -> Draft:
        made = ProductKernel(kernel, product, tiling, self.context)
        made.multiply()
        made.add_bias()
        if product.kind == "up":
            self._activate(kernel)
        made.store()
        programs = Extent(times=-(-product.outputs // made.mine))
        return Draft(kernel, (tiles, programs, ONE), When(rows_of(self.region.domain)))

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


def _number(value: object) -> int:
    assert isinstance(value, int), f"{value!r} is a size"
    return value
