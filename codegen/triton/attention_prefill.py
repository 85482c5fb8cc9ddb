"""Attention of sequences that have several tokens in a step: prompts, and parts of prompts."""

from llmc.codegen.key_ranges import key_ranges
from llmc.codegen.regions import Attention
from llmc.codegen.triton.attention_kernel import AttentionKernel
from llmc.codegen.triton.attention_lists import list_drafts
from llmc.codegen.triton.attention_shape import prefill_shape, prefill_tile
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft
from llmc.runtime.cuda.plan import ONE, Extent, When


class PrefillAttention(AttentionKernel):
    """A program takes some tokens of one sequence, which it finds by its number."""

    kind = "prefill"
    within = True

    def barriers(self) -> int:
        """Two around a block. Matrix units that read shared memory take a third, and one for each further chunk. Bytes
        are unpacked in between.

        Those of Blackwell are started by one thread for all warps, and have results in a memory of their own. For each
        chunk, one barrier before the sums are multiplied there, one before a product reads them, one before keys are
        read. Eight warps have a row in two layouts, and pass what its sums are multiplied by through shared memory.
        """
        parts, level = max(len(self.key_chunks), len(self.value_chunks)), self._level
        if self.tile.groups or not level:
            return 2
        if level >= 100:
            more = 1 if self.tile.warps == 8 else 0
            return 3 + more + 3 * parts if not self.scaled else 1 + 6 * parts
        if level >= 90:
            return 2 + parts if not self.scaled else 1 + 3 * parts
        return 4 * parts if self.scaled else 2

    def __init__(self, region: Attention, context: Context) -> None:
        shape = prefill_shape(region, context.caches[region.layer].dtype)
        window = key_ranges(region.mask, region.heads).begins
        super().__init__(region, context, shape, prefill_tile(shape, context.target, window=window))
        self.tokens = max(1, self.tile.rows // shape.heads)
        self._write()

    def drafts(self) -> list[Draft]:
        """Its launch, and that which makes lists for it."""
        programs = Extent(times=self.region.key_heads * self.shape.parts)
        own = Draft(self.text, (programs, Extent("T", per=self.tokens, plus="B"), ONE), When(decode=False))
        if self.lists is None:
            return [own]
        return [*list_drafts(self.region, self.context, self.kind, self.tile.keys, self.tokens), own]

    def _write(self) -> None:
        add, text, tile = self.text.add, self.text, self.tile
        part = tile.keys // max(1, tile.groups)
        keys = f"tl.arange(0, {tile.keys})"
        if tile.groups:
            keys = f"(tl.arange(0, {tile.groups}) * {part})[:, None] + tl.arange(0, {part})[None, :]"
        add(f"key = {keys}")
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
            f"position = positions_of[{self.row_axes}]",
            "low, high = tl.min(positions_of, 0), tl.max(positions_of, 0)",
            f"length = tl.load({text.step('lengths')} + sequence).to(tl.int32)",
            *self.keys.of_tile(tile.keys),
            *(self.of_list("token") if self.lists is not None else []),
        )
        self.queries()
        self.start()
        self.state()
        # A query's own key, which no mask that ends before it passes, is before `stop`.
        limits = [] if self.keys.ends_at_query else ["(k_position < stop)"]
        if self.keys.plain:
            before, ends = self.keys.limits(ends=True)
            add(*before)
            limits += ends
        if self.keys.plain and tile.edges_apart:
            self._two_loops(" & ".join(limits))
        else:
            begin, end = "begin", "stop - gap" if self.keys.apart else "stop"
            if self.lists is not None:
                begin, end = "0", "count"
            self.over_blocks(begin, end, " & ".join([*limits, *([self.visible] if self.visible else [])]))
        self.joined()
        real = f"(row // {heads} < {self.tokens}) & (token + row // {heads} < last)"
        if self.shape.group % heads:
            real += f" & (row % {heads} < {self.count})"
        add(
            "# Addresses are computed anew: kept since those of the queries, they would take registers of the loops.",
            f"row += {self.call('attention', 'unknown_zero')}({text.step('lengths')} + sequence)",
            f"within = {within}",
            f"head = {head}",
            self.factor("head", real),
        )
        for acc, chunk in zip(self.accs(), self.value_chunks, strict=True):
            add(self.store(acc, "head", real, chunk, (self.matrix_rows, self.matrix_columns)))

    def _two_loops(self, visible: str) -> None:
        add, keys = self.text.add, self.tile.keys
        block_at, size = self.call("attention", "block_at"), self.context.block_size
        first, end = self.keys.inner()
        add("# All rows see all keys from inner to inner_end; blocks at the edges are masked.", f"inner_end = {end}")
        if first is None:
            add(
                f"inner_end = tl.maximum(inner_end, 0) // {keys} * {keys}",
                f"block = {block_at}(table, 0, stop, {size})",
                f"for start in tl.range(0, inner_end, {keys}):",
            )
            self.block(f"start + {keys}", "")
            add(
                f"block = {block_at}(table, inner_end, stop, {size})",
                f"for start in tl.range(inner_end, stop, {keys}):",
            )
            self.block(f"start + {keys}", visible)
            return
        add(
            f"inner = tl.cdiv({first}, {keys}) * {keys}",
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
