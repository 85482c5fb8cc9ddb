"""Attention as Triton kernels: one for steps in which every sequence has one token, one for all others.

Both take the query heads of a key head together, as rows of a matrix, and go over the keys in blocks, which the block
table finds. A decode step divides a sequence's keys over several programs, the last of which merges their results.
"""

from dataclasses import replace

from llmc.codegen.layout import View
from llmc.codegen.mask_bounds import MaskBounds, mask_bounds
from llmc.codegen.regions import Attention
from llmc.codegen.triton.attention_shape import (
    LEAST_KEYS,
    AttentionShape,
    Tile,
    attention_shape,
    decode_tile,
    power_of_two,
    prefill_tile,
    split_counts,
)
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_cache import ELEMENTS, SCALED, emit_scaled_stores
from llmc.codegen.triton.emit_mask import Formula
from llmc.codegen.triton.kernel import Draft, KernelText, offset
from llmc.runtime.cuda.plan import ONE, Extent, When

_LOG2E = 1.4426950408889634


def emit_attention(region: Attention, context: Context) -> list[Draft]:
    """The launches of one region."""
    kernels = [*_Decode(region, context).drafts(), *_Prefill(region, context).drafts()]
    return [*emit_scaled_stores(region.layer, context), *kernels]


class _Kernel:
    """What both kernels have in common: one kernel's text, from the queries to the output."""

    kind = ""

    def __init__(self, region: Attention, context: Context, shape: AttentionShape, tile: Tile) -> None:
        self.region, self.context, self.tile = region, context, tile
        self.spec = context.caches[region.layer]
        self.shape = shape
        self.bounds: MaskBounds = mask_bounds(region.mask)
        formula = f"{region.mask}{'' if region.bias == '0' else f'; bias {region.bias}'}"
        self.text = KernelText(
            f"attention_{self.kind}",
            f"{region.heads} query heads over {region.key_heads} key heads of {region.key_size}: {formula}",
            warps=tile.warps,
            stages=tile.stages,
            pdl=context.pdl,
        )
        self.formula = Formula(self.text, region.tables)
        self.call = self.text.call

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
        factor = region.scale * (2 * _LOG2E / region.softcap if region.softcap > 0 else _LOG2E)
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
    def scaled(self) -> bool:
        """Whether keys and values are bytes with a scale."""
        return self.spec.dtype in SCALED

    def start(self, groups: str) -> None:
        """The state before the first block, and what formulas need of the queries. groups: leading axes, as "4, "."""
        tile, add, rows = self.tile, self.text.add, f"{groups}{self.tile.rows}"
        add(
            f"table = {self.text.step('blocks')} + sequence * {self.text.size('M')}",
            f"top = tl.full(({rows},), {self.call('attention', 'LOWEST')}, tl.float32)",
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
        lines.append(f"scores = tl.dot(queries, tl.trans(keys{self.turned}){self.precision})")
        if self.scaled:
            scales = self.text.cache("k_scale", region.layer, "*fp32")
            lines.append(f"scores *= tl.load({scales} + cached + key)[{self.key_axes}]")
        if region.softcap > 0:
            lines.append(f"scores = {self.call('attention', 'soft_cap')}(scores, {region.softcap!r})")
        if self.bias or (self.visible and visible):
            lines.append("k = k_position.to(tl.int64)")
        if self.bias:
            lines.append(f"scores += {self.bias} * {_LOG2E!r}")
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
        add, precision = self.call("attention", "add_block"), '"ieee"' if shape.exact else "None"
        lines.append(f"top, sums, acc = {add}(scores, values, {scales}, top, sums, acc, {precision})")
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
        """fp32 numbers are multiplied as such."""
        return ', input_precision="ieee"' if self.shape.exact else ""

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
            lines.append(f"{total}, {acc} = {call}({top}, {total}, {acc}, {sink}.to(tl.float32) * {_LOG2E!r})")
        at = self.address(region.output, "output", head, "value_column")
        mask = f"({real})[:, None]"
        if region.value_size != self.shape.value_width:
            mask += f" & (value_column < {region.value_size})[None, :]"
        lines.append(f"tl.store({at}, {self.call('attention', 'divided')}({acc}, {total}), mask={mask})")
        self.text.add(*(indent + line for line in lines))


class _Decode(_Kernel):
    """Four warps take a quarter of each block of keys each, with a softmax of their own, and join them in the end."""

    kind = "decode"
    key_axes = ":, None, :"
    row_axes = ":, :, None"
    head_axes = "None, :, None"
    turned = ", (0, 2, 1)"

    def __init__(self, region: Attention, context: Context) -> None:
        shape = attention_shape(region, context.caches[region.layer].dtype, 16)
        super().__init__(region, context, shape, decode_tile(shape, context.target))
        self.programs = region.key_heads * shape.parts
        self.ranges = split_counts(self.programs, context.target)
        self._write()

    def drafts(self) -> list[Draft]:
        return [
            Draft(
                self.text, (Extent("B", times=self.programs), Extent(times=splits), ONE), When("B", least, most, True)
            )
            for least, most, splits in self.ranges
        ]

    def _write(self) -> None:
        add, text, tile = self.text.add, self.text, self.tile
        earliest = _latest([f"position - {before}" for before in self.bounds.before])
        add("program, split = tl.program_id(0), tl.program_id(1)", f"sequence = program // {self.programs}")
        self.heads(f"program % {self.programs}")
        self.wait()
        add(
            f"position = tl.load({text.step('positions')} + sequence).to(tl.int32)",
            f"end = tl.load({text.step('lengths')} + sequence).to(tl.int32)",
            *[f"end = tl.minimum(end, position + {after + 1})" for after in self.bounds.after],
            f"begin = {earliest} // {tile.keys} * {tile.keys}",
            f"first, stop, shares = {self.call('attention', 'share_of')}"
            f"(begin, end, split, tl.num_programs(1), {tile.keys}, {max(LEAST_KEYS, tile.keys)})",
            "if split >= shares:",
            "    return",
            "token = sequence.to(tl.int64)",
            f"row = tl.arange(0, {tile.rows})",
            f"head = first_head + tl.minimum(row, {self.count} - 1)  # rows that fill up the tile repeat the last head",
        )
        self.queries()
        quarter = tile.keys // 4
        add(f"queries = tl.broadcast_to(queries[None], (4, {tile.rows}, {self.shape.key_width}))")
        self.start("4, ")
        visible = ["(k_position < stop)", *([self.visible] if self.visible else [])]
        if self.bounds.exact:
            visible += [f"(k_position >= position - {before})" for before in self.bounds.before]
        add(
            f"key = (tl.arange(0, 4) * {quarter})[:, None] + tl.arange(0, {quarter})[None, :]",
            f"block = {self.call('attention', 'block_at')}(table, first, stop, {self.context.block_size})",
            f"for start in tl.range(first, stop, {tile.keys}):",
        )
        self.block(f"start + {tile.keys}", " & ".join(visible))
        add(
            f"top, total, acc = {self.call('attention', 'join_groups')}(top, tl.sum(sums, 2), acc)",
            "if shares == 1:",
        )
        self.finish("(first_head + row)", f"row < {self.count}", "    ")
        add("else:")
        self._merge()

    def _merge(self) -> None:
        region, shape, text = self.region, self.shape, self.text
        rows, width = shape.heads, region.value_size
        places = self.programs * max((most or 1) * splits for _, most, splits in self.ranges)
        partials = text.workspace(self.context.workspace("attention_partials", places * rows * width * 4), "*fp32")
        states = text.workspace(self.context.workspace("attention_states", places * rows * 8), "*fp32")
        tasks = self.programs * self.ranges[-1][0]
        counters = text.workspace(self.context.workspace("attention_counters", tasks * 4), "*i32")
        group = power_of_two(rows)
        at_once = max(1, min(16, 8192 // (group * shape.value_width)))
        text.add(
            "    place = program * tl.num_programs(1)",
            f"    {self.call('attention', 'store_share')}({partials}, {states}, place + split, top, total, acc, row,"
            f" value_column, {rows}, {width})",
            f"    if {self.call('attention', 'is_last')}({counters}, program, shares):",
            f"        each = tl.arange(0, {group})",
            f"        all_top, all_total, all_acc = {self.call('attention', 'merge_shares')}(",
            f"            {partials}, {states}, place, shares, each, value_column, {rows}, {width}, {at_once})",
        )
        self.finish("(first_head + each)", f"each < {self.count}", "        ", "all_")


class _Prefill(_Kernel):
    kind = "prefill"
    within = "within[:, None] * {} + "

    def __init__(self, region: Attention, context: Context) -> None:
        shape = attention_shape(region, context.caches[region.layer].dtype, 64)
        super().__init__(region, context, shape, prefill_tile(shape, context.target))
        self.tokens = max(1, self.tile.rows // shape.heads)
        self._write()

    def drafts(self) -> list[Draft]:
        programs = Extent(times=self.region.key_heads * self.shape.parts)
        return [Draft(self.text, (programs, Extent("T", per=self.tokens, plus="B"), ONE), When(decode=False))]

    def _write(self) -> None:
        add, text, tile = self.text.add, self.text, self.tile
        add(f"key = tl.arange(0, {tile.keys})")
        self.heads("tl.program_id(0)")
        self.wait()
        heads = self.shape.heads
        within = f"tl.minimum(tl.minimum(row // {heads}, {self.tokens - 1}), (last - token).to(tl.int32) - 1)"
        head = f"first_head + tl.minimum(row % {heads}, {self.count} - 1)"
        add(
            "tile = tl.num_programs(1) - 1 - tl.program_id(1)  # the last tiles have the most keys",
            f"sequence, token, last = {self.call('attention', 'find_tile')}"
            f"({text.step('starts')}, {text.size('B')}, tile, {self.tokens})",
            "if token >= last:",
            "    return",
            f"row = tl.arange(0, {tile.rows})",
            f"within = {within}  # rows that fill up the tile repeat its last token",
            f"head = {head}",
            f"positions_of = tl.load({text.step('positions')} + token + within).to(tl.int32)",
            "position = positions_of[:, None]",
            "low, high = tl.min(positions_of, 0), tl.max(positions_of, 0)",
            f"stop = tl.load({text.step('lengths')} + sequence).to(tl.int32)",
            "inner_end = stop",
            *[f"stop = tl.minimum(stop, high + {after + 1})" for after in self.bounds.after],
            "stop = tl.maximum(stop, 0)",
            f"begin = {_latest([f'low - {before}' for before in self.bounds.before])} // {tile.keys} * {tile.keys}",
        )
        self.queries()
        self.start("")
        limits = ["(k_position < stop)"]
        if self.bounds.exact:
            limits += [f"(k_position <= {_sum('position', after)})" for after in self.bounds.after]
            limits += [f"(k_position >= position - {before})" for before in self.bounds.before]
        if self.bounds.exact and tile.edges_apart:
            self._two_loops(" & ".join(limits))
        else:
            add(
                f"block = {self.call('attention', 'block_at')}(table, begin, stop, {self.context.block_size})",
                f"for start in tl.range(begin, stop, {tile.keys}):",
            )
            self.block(f"start + {tile.keys}", " & ".join([*limits, *([self.visible] if self.visible else [])]))
        add(
            "total = sums",
            "# Addresses are computed anew: kept since those of the queries, they would take registers of the loops.",
            f"row += {self.call('attention', 'unknown_zero')}({text.step('lengths')} + sequence)",
            f"within = {within}",
            f"head = {head}",
        )
        real = f"(row // {heads} < {self.tokens}) & (token + row // {heads} < last)"
        if self.shape.group % heads:
            real += f" & (row % {heads} < {self.count})"
        self.finish("head", real)

    def _two_loops(self, visible: str) -> None:
        add, keys = self.text.add, self.tile.keys
        block_at, size = self.call("attention", "block_at"), self.context.block_size
        earliest = _latest([f"high - {before}" for before in self.bounds.before])
        add(
            "# All rows see all keys from inner to inner_end; blocks at the edges are masked.",
            *[f"inner_end = tl.minimum(inner_end, low + {after + 1})" for after in self.bounds.after],
            f"inner = tl.cdiv({earliest}, {keys}) * {keys}",
            f"inner = tl.minimum(tl.maximum(inner, begin), tl.cdiv(stop, {keys}) * {keys})",
            f"inner_end = tl.maximum(inner_end // {keys} * {keys}, inner)",
            f"block = {block_at}(table, inner, stop, {size})",
            f"for start in tl.range(inner, inner_end, {keys}):",
        )
        self.block(f"start + {keys}", "")
        add(
            f"before = tl.cdiv(inner - begin, {keys})",
            f"edges = before + tl.cdiv(tl.maximum(stop - inner_end, 0), {keys})",
            "start = tl.where(before > 0, begin, inner_end)",
            f"block = {block_at}(table, start, stop, {size})",
            "for edge in tl.range(0, edges):",
            f"    start = {_edge('edge', keys)}",
            f"    following = {_edge('edge + 1', keys)}",
        )
        self.block("following", visible)


def _edge(number: str, keys: int) -> str:
    return f"tl.where({number} < before, begin + ({number}) * {keys}, inner_end + ({number} - before) * {keys})"


def _sum(name: str, number: int) -> str:
    return f"{name} + {number}" if number else name


def _latest(bounds: list[str]) -> str:
    text = "0"
    for bound in bounds:
        text = f"tl.maximum({text}, {bound})"
    return text
