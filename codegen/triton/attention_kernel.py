"""What the kernels of attention have in common: the text from the queries over the blocks of keys to the output."""

from dataclasses import replace

from llmc.codegen.layout import View
from llmc.codegen.mask_bounds import MaskBounds, mask_bounds
from llmc.codegen.regions import Attention
from llmc.codegen.triton.attention_shape import AttentionShape, Tile
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_cache import ELEMENTS, SCALED
from llmc.codegen.triton.emit_mask import Formula
from llmc.codegen.triton.kernel import KernelText, offset

LOG2E = 1.4426950408889634


class AttentionKernel:
    """What both kernels have in common: one kernel's text, from the queries to the output."""

    kind = ""

    def __init__(self, region: Attention, context: Context, shape: AttentionShape, tile: Tile) -> None:
        self.region, self.context, self.tile = region, context, tile
        self.spec = context.caches[region.layer]
        self.shape = shape
        self.bounds: MaskBounds = mask_bounds(region.mask)
        formula = f"{region.mask}{'' if region.bias == '0' else f'; bias {region.bias}'}"
        formula += "; no running maximum, as scores are bounded" if self.bounded else ""
        self.text = KernelText(
            f"attention_{self.kind}",
            f"{region.heads} query heads over {region.key_heads} key heads of {region.key_size}: {formula}",
            warps=tile.warps,
            stages=tile.stages,
            pdl=context.pdl,
            matrix_units=True,
            most_barriers=self.barriers(context),
        )
        self.formula = Formula(self.text, region.tables)
        self.call = self.text.call

    def barriers(self, context: Context) -> int:
        """How many the inner loop has to have."""
        raise NotImplementedError

    def wait(self) -> None:
        """Let the kernels before end: all that is read is theirs, the block tables of a replayed graph included."""
        if self.text.pdl:
            self.text.add("tl.extra.cuda.gdc_wait()", "tl.extra.cuda.gdc_launch_dependents()")

    def heads(self, program: str) -> None:
        """`key_head`, `first_head` and `heads` of a program."""
        region, shape = self.region, self.shape
        if shape.parts == 1:
            self.text.add(f"key_head = {program}", f"first_head = key_head * {shape.group}")
            return
        self.text.add(
            f"key_head = {program} // {shape.parts}",
            f"part = {program} % {shape.parts}  # of the key head's {shape.group} query heads",
            f"first_head = key_head * {region.heads // region.key_heads} + part * {shape.heads}",
        )

    @property
    def count(self) -> str:
        """How many heads a program has."""
        shape = self.shape
        if shape.group % shape.heads == 0:
            return str(shape.heads)
        return f"tl.minimum({shape.heads}, {shape.group} - part * {shape.heads})"

    def address(self, view: View, role: str, head: str, column: str) -> str:
        """Of the elements of heads [rows] in the rows of their tokens: in a wide number up to the first token of the
        tile, in 32 bits from there on.
        """
        pointer = self.text.pointer(view.buffer, role)
        row = replace(view, buffer=replace(view.buffer, domain=""))
        within = offset(row, "", [f"{head}[:, None]", f"{column}[None, :]"])
        return f"{pointer} + token * {view.buffer.width} + ({self.within.format(view.buffer.width)}{within})"

    within = ""
    """Where rows of several tokens begin, counted from the tile's first token, given the width of a row in memory."""

    def queries(self) -> None:
        """`queries` [rows, key width]: scaled, in the type that keys have."""
        region, shape = self.region, self.shape
        factor = region.scale * (2 * LOG2E / region.softcap if region.softcap > 0 else LOG2E)
        padded = region.key_size != shape.key_width
        guard = f", mask=(column < {region.key_size})[None, :], other=0.0" if padded else ""
        same = shape.key_width == shape.value_width
        self.text.add(
            f"column = tl.arange(0, {shape.key_width})",
            f"value_column = {'column' if same else f'tl.arange(0, {shape.value_width})'}",
            f"queries = tl.load({self.address(region.query, 'query', 'head', 'column')}{guard})",
            f"queries = (queries.to(tl.float32) * {factor!r}).to({self.multiplied})",
        )

    def cache(self, name: str) -> str:
        """The parameter of the cache's keys ("k") or values ("v")."""
        return self.text.cache(name, self.region.layer, ELEMENTS[self.spec.dtype])

    @property
    def multiplied(self) -> str:
        """The type in which queries meet keys, and weights values."""
        return "tl.bfloat16" if self.scaled else f"{self.cache('k')}.dtype.element_ty"

    @property
    def bounded(self) -> bool:
        """Whether the softmax needs no running maximum. fp16 has no room for weights that are not divided by it."""
        return self.region.layer in self.context.bounded and self.spec.dtype != "float16"

    @property
    def scaled(self) -> bool:
        """Whether keys and values are bytes with a scale."""
        return self.spec.dtype in SCALED

    def start(self, groups: str) -> None:
        """The state before the first block, and what formulas need of the queries. groups: leading axes, as "4, "."""
        tile, add, rows = self.tile, self.text.add, f"{groups}{self.tile.rows}"
        add(
            f"table = {self.text.step('blocks')} + sequence * {self.text.size('M')}",
            f"top = tl.full(({rows},), {'0.0' if self.bounded else self.call('attention', 'LOWEST')}, tl.float32)",
            f"sums = tl.zeros(({rows}, {f'{tile.keys // 4}' if groups else ''}), tl.float32)",
            f"acc = tl.zeros(({rows}, {self.shape.value_width}), tl.float32)",
        )
        self.visible = "" if self.bounds.exact else self.formula.predicate(self.region.mask)
        self.bias = "" if self.region.bias == "0" else self.formula.number(self.region.bias)
        if self.visible or self.bias:
            add(f"q, h = position.to(tl.int64), head.to(tl.int64)[{self.head_axes}]  # as the formulas call them")
            add(*self.formula.before)

    def block(self, following: str, visible: str) -> None:
        """The body of a loop: adds the keys of `block` from `start` on. Then `block` is that of position `following`.

        visible: a predicate; "" where all keys are seen.
        """
        region, shape, lines = self.region, self.shape, []
        size = self.context.block_size
        lines.append(f"cached = (block * {region.key_heads} + key_head) * {size} + start % {size}")
        lines.append(f"block = {self.call('attention', 'block_at')}(table, {following}, stop, {size})")
        lines.append(f"k_position = (start + key)[{self.key_axes}]")
        lines.append(f"keys = {self._load('k', region.key_size, shape.key_width, 'column', '')}")
        lines.append(f"scores = tl.dot(queries, tl.trans(keys{self.turned}), input_precision={self.precision})")
        if self.scaled:
            scales = self.text.cache("k_scale", region.layer, "*fp32")
            lines.append(f"scores *= tl.load({scales} + cached + key)[{self.key_axes}]")
        if region.softcap > 0:
            lines.append(f"scores = {self.call('attention', 'soft_cap')}(scores, {region.softcap!r})")
        if self.bias or (self.visible and visible):
            lines.append("k = k_position.to(tl.int64)")
        if self.bias:
            lines.append(f"scores += {self.bias} * {LOG2E!r}")
        if visible:
            lines.append(f"scores = tl.where({visible}, scores, float('-inf'))")
        seen = f"(start + key < stop)[{self.row_axes}]" if visible else ""
        lines.append(f"values = {self._load('v', region.value_size, shape.value_width, 'value_column', seen)}")
        scales = "None"
        if self.scaled:
            scales = self.text.cache("v_scale", region.layer, "*fp32")
            guard = ", mask=start + key < stop, other=0.0" if visible else ""
            lines.append(f"scales = tl.load({scales} + cached + key{guard})[{self.key_axes}]")
            scales = "scales"
        add = self.call("attention", "add_bounded_block" if self.bounded else "add_block")
        lines.append(f"top, sums, acc = {add}(scores, values, {scales}, top, sums, acc, {self.precision})")
        self.text.add(*("    " + line for line in lines))

    key_axes = "None, :"
    """How positions of keys become a row of scores."""
    row_axes = ":, None"
    head_axes = ":, None"
    """How what is known of keys becomes a column of keys and values."""
    turned = ""
    """The order of axes in which keys are multiplied, if they have more than two."""

    @property
    def precision(self) -> str:
        """How fp32 numbers are multiplied: exactly, but for NVIDIA's GPUs as products of tf32 that are off by 2^-21."""
        exact = '"tf32x3"' if self.context.target.kind == "cuda" else '"ieee"'
        return exact if self.shape.exact else "None"

    def _load(self, cache: str, size: int, width: int, column: str, seen: str) -> str:
        """A block of keys or values; only rows that are `seen` are read, if that is not ""."""
        columns = self.row_axes.replace(":", "None").removesuffix("None") + ":"
        masks = [seen] if seen else []
        masks += [f"({column} < {size})[{columns}]"] if size != width else []
        guard = f", mask={' & '.join(masks)}, other=0" if masks else ""
        within = f"key[{self.row_axes}] * {size} + {column}[{columns}]"
        text = f"tl.load({self.cache(cache)} + cached * {size} + ({within}){guard})"
        if not self.scaled:
            return text
        library = "weights" if self.context.target.kind == "cuda" else "plain_weights"
        function = "bytes_as_integers" if self.spec.dtype == "int8" else "fp8_as_numbers"
        return f"{self.call(library, function)}({text})"

    def finish(self, head: str, real: str, indent: str = "", prefix: str = "") -> None:
        """The lines that turn `top`, `total` and `acc`, with a prefix, into the output of their rows."""
        top, total, acc = (prefix + name for name in ("top", "total", "acc"))
        region, lines = self.region, []
        if region.sinks is not None:
            pointer = self.text.pointer(region.sinks.buffer, "sinks")
            sink = f"tl.load({pointer} + ({offset(region.sinks, '0', [head])}), mask={real}, other=0.0)"
            call = self.call("attention", "add_sink")
            lines.append(f"{total}, {acc} = {call}({top}, {total}, {acc}, {sink}.to(tl.float32) * {LOG2E!r})")
        at = self.address(region.output, "output", head, "value_column")
        mask = f"({real})[:, None]"
        if region.value_size != self.shape.value_width:
            mask += f" & (value_column < {region.value_size})[None, :]"
        lines.append(f"tl.store({at}, {self.call('attention', 'divided')}({acc}, {total}), mask={mask})")
        self.text.add(*(indent + line for line in lines))


def plus(name: str, number: int) -> str:
    """An expression of a sum."""
    return f"{name} + {number}" if number else name


def latest(bounds: list[str]) -> str:
    """An expression of the greatest of some positions and 0."""
    text = "0"
    for bound in bounds:
        text = f"tl.maximum({text}, {bound})"
    return text
