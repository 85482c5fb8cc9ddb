"""What the kernels of attention have in common: the text from the queries over the blocks of keys to the output.

Products have either the queries or the keys as their large side, which is the first axis of scores then: [rows, keys],
or, with a part of each block's keys for each warp, [groups, keys, rows]. Keys are the second axis in both.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from llmc.codegen.layout import View
from llmc.codegen.regions import Attention
from llmc.codegen.triton.attention_keys import VisibleKeys
from llmc.codegen.triton.attention_lists import MOST_KEYS, Lists, lists_of
from llmc.codegen.triton.attention_shape import AttentionShape, Chunk, Tile, chunks
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_cache import ELEMENTS, SCALED
from llmc.codegen.triton.emit_mask import Formula, position_type
from llmc.codegen.triton.kernel import KernelText, offset

LOG2E = 1.4426950408889634


class AttentionKernel:
    """What both kernels have in common: one kernel's text, from the queries to the output."""

    kind = ""

    def __init__(self, region: Attention, context: Context, shape: AttentionShape, tile: Tile) -> None:
        self.region, self.context, self.tile = region, context, tile
        self.spec = context.caches[region.layer]
        self.shape = shape
        self.key_chunks = chunks(region.key_size, tile.chunk)
        self.value_chunks = self._value_chunks()
        formula = f"{region.mask}{'' if region.bias == '0' else f'; bias {region.bias}'}"
        formula += "; no running maximum, as scores are bounded" if self.bounded else ""
        self.text = KernelText(
            f"attention_{self.kind}",
            f"{region.heads} query heads over {region.key_heads} key heads of {region.key_size}: {formula}",
            warps=tile.warps,
            stages=tile.stages,
            pdl=context.pdl,
            matrix_units=True,
            most_barriers=self.barriers(),
        )
        self.formula = Formula(self.text, region.tables)
        self.keys = VisibleKeys(region, self.text)
        in_lists = region.layer in context.listed
        self.lists: Lists | None = lists_of(region, context, self.kind, tile.keys) if in_lists else None
        self.call = self.text.call
        # How keys, rows, and elements of a head stand in scores, keys, queries and values.
        turned = bool(tile.groups)
        self.key_axes = ":, :, None" if turned else "None, :"
        self.row_axes = "None, None, :" if turned else ":, None"
        self.matrix_rows, self.matrix_columns = ("None, :", ":, None") if turned else (":, None", "None, :")

    def _value_chunks(self) -> tuple[Chunk, ...]:
        size = self.region.value_size
        if not self.paired:
            return chunks(size, self.tile.chunk)
        return tuple(
            Chunk(2 * chunk.first + second, chunk.size, chunk.width, 2)
            for chunk in chunks(size // 2, self.tile.chunk)
            for second in range(2)
        )

    def barriers(self) -> int:
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

    def address(self, view: View, role: str, head: str, column: str, axes: tuple[str, str]) -> str:
        """Of elements `column` of heads `head`, which lie along `axes`, in the rows of their tokens: in a wide number
        up to the first token of the tile, in 32 bits from there on.
        """
        pointer = self.text.pointer(view.buffer, role)
        row = replace(view, buffer=replace(view.buffer, domain=""))
        within = offset(row, "", [f"{head}[{axes[0]}]", f"({column})[{axes[1]}]"])
        width = view.buffer.width
        tokens = f"within[{axes[0]}] * {width} + " if self.within else ""
        return f"{pointer} + token * {width} + ({tokens}{within})"

    within = False
    """Whether rows are of several tokens, `within` being their places from the first on."""

    def queries(self) -> None:
        """`queries` of each chunk: scaled, in the type that keys have."""
        region = self.region
        factor = region.scale * (2 * LOG2E / region.softcap if region.softcap > 0 else LOG2E)
        axes = self.matrix_rows, self.matrix_columns
        widths = {chunk.width for chunk in (*self.key_chunks, *self.value_chunks)}
        self.text.add(*(f"column_{width} = tl.arange(0, {width})" for width in sorted(widths)))
        for name, chunk in _named("queries", self.key_chunks):
            column = chunk.columns(f"column_{chunk.width}")
            guard = f", mask=({column} < {region.key_size})[{axes[1]}], other=0.0" if chunk.size < chunk.width else ""
            number = f"{name}.to(tl.float32) * {factor!r}"
            if self.scaled:  # as fp16, whose range real queries are far from
                number = f"tl.clamp({number}, -65504.0, 65504.0)"
            self.text.add(
                f"{name} = tl.load({self.address(region.query, 'query', 'head', column, axes)}{guard})",
                f"{name} = ({number}).to({self.multiplied})",
            )
            if groups := self.tile.groups:
                self.text.add(f"{name} = tl.broadcast_to({name}[None], ({groups}, {chunk.width}, {self.tile.rows}))")

    def cache(self, name: str) -> str:
        """The parameter of the cache's keys ("k") or values ("v")."""
        return self.text.cache(name, self.region.layer, ELEMENTS[self.spec.dtype])

    @property
    def multiplied(self) -> str:
        """The type in which queries meet keys, and weights values."""
        return "tl.float16" if self.scaled else f"{self.cache('k')}.dtype.element_ty"

    @property
    def bounded(self) -> bool:
        """Whether the softmax needs no running maximum. fp16 has no room for weights that are not divided by it."""
        return self.region.layer in self.context.bounded and self.spec.dtype in ("float32", "bfloat16")

    @property
    def scaled(self) -> bool:
        """Whether keys and values are bytes with a scale."""
        return self.spec.dtype in SCALED

    @property
    def paired(self) -> bool:
        """Whether values are read as words of two bytes, as matrix units take them that read registers."""
        return self.scaled and self.region.value_size % 2 == 0 and not self.from_memory

    @property
    def from_memory(self) -> bool:
        """Whether matrix units read keys and values from shared memory, where bytes are unpacked to."""
        return bool(self._level) and not self.tile.groups

    @property
    def _level(self) -> int:
        """The number of an NVIDIA target, such as 90, or 0."""
        target = self.context.target
        return int(target.level.removeprefix("sm_")) if target.kind == "cuda" else 0

    def start(self) -> None:
        """What loops need of the sequence and of the queries."""
        self.text.add(f"table = {self.text.step('blocks')} + sequence * {self.text.size('M')}")
        self.visible = "" if self.keys.plain else self.formula.predicate(self.region.mask)
        self.bias = "" if self.region.bias == "0" else self.formula.number(self.region.bias)
        if self.visible or self.bias:
            whole = self.position_type
            self.text.add(f"q = position.to({whole})  # positions of queries, and below of keys, as formulas call them")
            self.text.add(f"h = head.to({whole})[{self.row_axes}]")
            self.text.add(*self.formula.before)

    @property
    def position_type(self) -> str:
        """Of positions and heads in formulas."""
        return position_type(self.region.mask if self.visible else "True", self.region.bias)

    def state(self) -> None:
        """The state before the first block."""
        tile = self.tile
        rows = f"{tile.groups}, {tile.rows}" if tile.groups else f"{tile.rows},"
        sums = f"{tile.groups}, {tile.keys // tile.groups}, {tile.rows}" if tile.groups else f"{tile.rows},"
        top = "0.0" if self.bounded else self.call("attention", "LOWEST")
        lines = [f"top = tl.full(({rows}), {top}, tl.float32)", f"sums = tl.zeros(({sums}), tl.float32)"]
        for name, chunk in _named("acc", self.value_chunks):
            shape = f"{tile.groups}, {chunk.width}, {tile.rows}" if tile.groups else f"{tile.rows}, {chunk.width}"
            lines.append(f"{name} = tl.zeros(({shape}), tl.float32)")
        self.text.add(*lines)

    def over_blocks(self, begin: str, end: str, visible: str) -> None:
        """A loop over the blocks from one key up to another, both counted without a gap. visible: see `block`."""
        keys, size = self.tile.keys, self.context.block_size
        block_at, past = self.call("attention", "block_at"), f"start + {keys}"
        if self.lists is not None:
            lookup = f"{self.call('visible_keys', 'listed_block')}(entries, table, {{}}, count, long, {keys}, {size})"
            self.text.add(
                f"entry = {lookup.format(begin)}",
                f"for visited in tl.range({begin}, {end}, {keys}):",
                "    start, block = (entry & 0x7FFFFFFF).to(tl.int32), entry >> 32",
            )
            self.block("", visible, f"entry = {lookup.format(f'visited + {keys}')}")
            return
        if not self.keys.apart:
            self.text.add(f"block = {block_at}(table, {begin}, stop, {size})")
            self.text.add(f"for start in tl.range({begin}, {end}, {keys}):")
        else:
            past_gap = self.call("visible_keys", "past_gap")
            past = f"{past_gap}(visited + {keys}, gap_at, gap)"
            self.text.add(
                f"block = {block_at}(table, {past_gap}({begin}, gap_at, gap), stop, {size})",
                f"for visited in tl.range({begin}, {end}, {keys}):",
                f"    start = {past_gap}(visited, gap_at, gap)",
            )
        self.block(past, visible)

    def of_list(self, row: str) -> list[str]:
        """Lines that set what loops over a list need: that of a row."""
        assert self.lists is not None, "there are lists"
        entries, counts = self.text.pointer(self.lists.entries, "lists"), self.text.pointer(self.lists.counts, "counts")
        return [
            f"entries = {entries} + {row}.to(tl.int64) * {self.lists.width}",
            f"count = tl.load({counts} + {row}).to(tl.int32)",
            f"long = length > {MOST_KEYS}",
        ]

    def block(self, following: str, visible: str, lookup: str = "") -> None:
        """The body of a loop: adds the keys of `block` from `start` on. Then `block` is that of position `following`.

        visible: a predicate; "" where all keys are seen. lookup: a line that finds the next block, in place of that.
        """
        size, block_at = self.context.block_size, self.call("attention", "block_at")
        self.text.add(
            f"    cached = (block * {self.region.key_heads} + key_head) * {size} + start % {size}",
            f"    {lookup or f'block = {block_at}(table, {following}, stop, {size})'}",
        )
        early = self.scaled and self.from_memory  # unpacked with the keys: one barrier for both
        lines = [line for _, line in self._loads(visible)] if early else []
        lines += [*self._scores(visible), *self._weights(visible), *self._sums(visible, early)]
        self.text.add(*("    " + line for line in lines))

    def _scores(self, visible: str) -> Iterator[str]:
        region, tile = self.region, self.tile
        product = self.call("attention", "product")
        scores = (
            f"{tile.groups}, {tile.keys // tile.groups}, {tile.rows}" if tile.groups else f"{tile.rows}, {tile.keys}"
        )
        before = f"tl.zeros(({scores}), tl.float32)"
        for (name, chunk), (queries, _) in zip(
            _named("keys", self.key_chunks), _named("queries", self.key_chunks), strict=True
        ):
            yield f"{name} = {self._keys(chunk)}"
            sides = f"{name}, {queries}" if tile.groups else f"{queries}, tl.trans({name})"
            yield f"scores = {product}({sides}, {before}, {self.precision})"
            before = "scores"
        if self.scaled:
            scales = self.text.cache("k_scale", region.layer, "*fp32")
            yield f"scores *= tl.load({scales} + cached + key)[{self.key_axes}]"
        if region.softcap > 0:
            capped = self.call("attention", "soft_cap")
            yield f"scores = {capped}(scores, {region.softcap!r}, {self.precision})"
        if self.bias or visible:
            yield f"k_position = (start + key)[{self.key_axes}]"
        if self.bias or (self.visible and visible):
            yield f"k = k_position.to({self.position_type})"
        if self.bias:
            yield f"scores += {self.bias} * {LOG2E!r}"
        if visible:
            yield f"scores = tl.where({visible}, scores, float('-inf'))"

    def _weights(self, visible: str) -> Iterator[str]:
        if self.scaled:
            scales = self.text.cache("v_scale", self.region.layer, "*fp32")
            guard = ", mask=start + key < stop, other=1.0" if visible else ""
            # Zero is the scale of values that are all zero.
            yield f"scales = tl.maximum(tl.load({scales} + cached + key{guard}), 1e-30)[{self.key_axes}]"
            yield f"scores += {self.call(self._numbers, 'logarithm')}(scales)"
            weigh = self.call("attention", "weigh_scaled")
            inverse = f"{self.call(self._numbers, 'inverse')}(scales)"
            yield f"weights, keep, top, sums = {weigh}(scores, {inverse}, top, sums)"
        elif self.bounded:
            yield f"weights, sums = {self.call('attention', 'weigh_bounded')}(scores, sums)"
        else:
            yield f"weights, keep, top, sums = {self.call('attention', 'weigh')}(scores, top, sums)"
        if self.from_memory and self._level >= 100 and not self.bounded:
            yield f"keep = {self.call('attention', 'after_sums')}(keep, sums)"
        yield f"weights = weights.to({self.multiplied})"

    def _loads(self, visible: str) -> Iterator[tuple[tuple[str, ...], str]]:
        """The names of chunks of values that are loaded together, and the line that does it."""
        names = list(_named("values", self.value_chunks))
        pairs = zip(names[::2], names[1::2], strict=True) if self.paired else ((item,) for item in names)
        for loaded in pairs:
            together = tuple(name for name, _ in loaded)
            yield together, f"{', '.join(together)} = {self._values(loaded[0][1], visible)}"

    def _sums(self, visible: str, loaded: bool) -> Iterator[str]:
        accs = iter(self.accs())
        for names, load in self._loads(visible):
            if not loaded:
                yield load
            for values in names:
                acc = next(accs)
                sides = f"{values}, weights" if self.tile.groups else f"weights, {values}"
                before = acc if self.bounded else f"{acc} * keep"
                yield f"{acc} = {self.call('attention', 'product')}({sides}, {before}, {self.precision})"

    @property
    def precision(self) -> str:
        """How fp32 numbers are multiplied: exactly, or on NVIDIA's GPUs as products of tf32."""
        exact = '"tf32"' if self.context.target.kind == "cuda" else '"ieee"'
        return exact if self.shape.exact else "None"

    def _keys(self, chunk: Chunk) -> str:
        """A chunk of a block's keys."""
        size = self.region.key_size
        rows, columns = (":, :, None", "None, None, :") if self.tile.groups else (":, None", "None, :")
        column = chunk.columns(f"column_{chunk.width}")
        guard = f", mask=({column} < {size})[{columns}], other=0" if chunk.size < chunk.width else ""
        text = f"tl.load({self.cache('k')} + cached * {size} + (key[{rows}] * {size} + ({column})[{columns}]){guard})"
        return self._unpacked(text) if self.scaled else text

    def _values(self, chunk: Chunk, visible: str) -> str:
        """A chunk of a block's values, or two that lie side by side; only keys before `stop` are read."""
        size = self.region.value_size
        rows, columns = (":, None, :", "None, :, None") if self.tile.groups else (":, None", "None, :")
        pointer = self.cache("v")
        if self.paired:
            pointer, size = f"{pointer}.to(tl.pointer_type(tl.int16), bitcast=True)", size // 2
            chunk = Chunk(chunk.first // 2, chunk.size, chunk.width)
        column = chunk.columns(f"column_{chunk.width}")
        masks = [f"(start + key < stop)[{rows}]"] if visible else []
        masks += [f"({column} < {size})[{columns}]"] if chunk.size < chunk.width else []
        guard = f", mask={' & '.join(masks)}, other=0" if masks else ""
        text = f"tl.load({pointer} + cached * {size} + (key[{rows}] * {size} + ({column})[{columns}]){guard})"
        return self._unpacked(text, self.paired) if self.scaled else text

    def _unpacked(self, loaded: str, pairs: bool = False) -> str:
        """The numbers of bytes, or those of each two that are a word."""
        older = self._level and self._level < 89 and self.spec.dtype == "fp8"
        name = f"{self.spec.dtype}_{'pairs' if pairs else 'halves'}{'_by_shifts' if older else ''}"
        pure = "" if pairs else f", {not self.from_memory or self._level >= 90}"
        return f"{self.call(self._numbers, name)}({loaded}{pure})"

    @property
    def _numbers(self) -> str:
        """The module of what is done with bytes of the cache."""
        return "cached_numbers" if self.context.target.kind == "cuda" else "plain_cached_numbers"

    def factor(self, head: str, real: str, prefix: str = "") -> str:
        """A line that sets `factor`, what the sums of values of rows are multiplied by in the end."""
        top, total, region = f"{prefix}top", f"{prefix}total", self.region
        if region.sinks is None:
            return f"factor = {self.call('attention', 'factor_of')}({total})"
        pointer = self.text.pointer(region.sinks.buffer, "sinks")
        sink = f"tl.load({pointer} + ({offset(region.sinks, '0', [head])}), mask={real}, other=0.0)"
        call = self.call("attention", "factor_with_sink")
        return f"factor = {call}({top}, {total}, {sink}.to(tl.float32) * {LOG2E!r})"

    def store(self, acc: str, head: str, real: str, chunk: Chunk, axes: tuple[str, str]) -> str:
        """A line that stores the output of rows, of `real` ones, for a chunk of values that lies along `axes`."""
        name = f"column_{chunk.width}"
        at = self.address(self.region.output, "output", head, chunk.columns(name), axes)
        mask = f"({real})[{axes[0]}]"
        if chunk.size < chunk.width:
            mask += f" & ({name} < {chunk.size})[{axes[1]}]"
        return f"tl.store({at}, {acc} * factor[{axes[0]}], mask={mask})"

    def joined(self) -> None:
        """`top`, `total` and sums of values of rows over all groups of keys."""
        if not self.tile.groups:
            self.text.add("total = sums")
            return
        self.text.add(f"top, total, keep = {self.call('attention', 'join_states')}(top, tl.sum(sums, 1))")
        for name in self.accs():
            self.text.add(f"{name} = {self.call('attention', 'join_groups')}({name}, keep)")

    def accs(self) -> tuple[str, ...]:
        """The names of the sums of each chunk of values."""
        return tuple(name for name, _ in _named("acc", self.value_chunks))


def _named(role: str, parts: Iterable[Chunk]) -> Iterator[tuple[str, Chunk]]:
    """Chunks with a name for each: that of the role if there is one, with its first element otherwise."""
    given = tuple(parts)
    for chunk in given:
        yield role if len(given) == 1 else f"{role}_{chunk.first}", chunk
