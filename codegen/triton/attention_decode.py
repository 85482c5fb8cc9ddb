"""Attention of steps in which every sequence has one token: the keys of a sequence are divided over programs."""

from llmc.codegen.regions import Attention
from llmc.codegen.triton.attention_kernel import AttentionKernel, latest
from llmc.codegen.triton.attention_shape import LEAST_KEYS, attention_shape, decode_tile, power_of_two, split_counts
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft
from llmc.runtime.cuda.plan import ONE, Extent, When


class DecodeAttention(AttentionKernel):
    """Four warps take a quarter of each block of keys each, with a softmax of their own, and join them in the end."""

    kind = "decode"
    key_axes = ":, None, :"
    row_axes = ":, :, None"
    head_axes = "None, :, None"
    turned = ", (0, 2, 1)"

    def barriers(self, context: Context) -> int:
        """One before a block is read, one after; those of eight warps also exchange weights."""
        return 2 if self.tile.warps == 4 else 4

    def __init__(self, region: Attention, context: Context) -> None:
        shape = attention_shape(region, context.caches[region.layer].dtype, 16)
        super().__init__(region, context, shape, decode_tile(shape, context.target))
        self.programs = region.key_heads * shape.parts
        self.ranges = split_counts(self.programs, context.target)
        self._write()

    def drafts(self) -> list[Draft]:
        """Its launches: the fewer sequences, the more programs for each."""
        return [
            Draft(
                self.text, (Extent("B", times=self.programs), Extent(times=splits), ONE), When("B", least, most, True)
            )
            for least, most, splits in self.ranges
        ]

    def _write(self) -> None:
        add, text, tile = self.text.add, self.text, self.tile
        earliest = latest([f"position - {before}" for before in self.bounds.before])
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
