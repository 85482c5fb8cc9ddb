"""Attention of sequences that have one token in a step: their keys are divided over programs."""

from llmc.codegen.regions import Attention
from llmc.codegen.triton.attention_kernel import AttentionKernel
from llmc.codegen.triton.attention_lists import list_drafts
from llmc.codegen.triton.attention_shape import Chunk, decode_shape, decode_tile, power_of_two
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft
from llmc.runtime.cuda.plan import ONE, Extent, When
from llmc.runtime.shares import Shares, attention_key

MOST_TIMES_RULE = 2
"""There is memory for so many times the programs that the rule says."""


class DecodeAttention(AttentionKernel):
    """Each warp takes a part of each block of keys, with a softmax of its own; they join them in the end.

    As many programs as fill the cores twice divide all keys of the step among them, in equal parts. More would wait for
    others to end: two on a core is what shared memory has room for where heads are of 128. They are found by number
    (`find_share`), so that a long sequence has many of them, whatever the others are. How many there are is an
    argument: `llmc tune` measures others.
    """

    kind = "decode"

    def barriers(self) -> int:
        """One before a block is read, one after."""
        return 2

    def __init__(self, region: Attention, context: Context) -> None:
        shape = decode_shape(region, context.caches[region.layer].dtype, context.target)
        super().__init__(region, context, shape, decode_tile(shape, context.target))
        self.programs = region.key_heads * shape.parts
        rule = max(1, 2 * context.target.cores // self.programs)
        sizes = region.key_size, region.value_size
        self.name = attention_key(region.heads, region.key_heads, sizes, self.spec.dtype, region.mask)
        self.shares = context.shares.setdefault(self.name, Shares(rule, MOST_TIMES_RULE * rule))
        self._write()

    def drafts(self) -> list[Draft]:
        """Its launches: in decode steps, and in those where some sequences may have one token and others more."""
        # A share begins with each sequence, or where another has as many keys as all are to have.
        grid = Extent(times=self.programs), Extent("B", more=self.shares.rule - 1), ONE
        drafts = [Draft(self.text, grid, When(decode=True)), Draft(self.text, grid, When("B", 2, decode=False))]
        if self.lists is None:
            return drafts
        return [*list_drafts(self.region, self.context, self.kind, self.tile.keys, 1), *drafts]

    def _write(self) -> None:
        add, text, tile = self.text.add, self.text, self.tile
        add("program = tl.program_id(0)")
        self.heads("program")
        self.wait()
        lengths, keys_of = text.step("lengths"), ""
        if self.lists is None:
            keys_of = self.keys.of_sequence(tile.keys)
        else:
            lengths, keys_of = text.pointer(self.lists.counts, "counts"), self.call("visible_keys", "whole_count")
        add(
            f"sequence, share, shares, place, first, last = {self.call('attention', 'find_share')}(",
            f"    {text.step('starts')}, {lengths}, {text.size('B')}, tl.program_id(1), {text.shares(self.name)},"
            f" {keys_of}, {tile.keys})",
            "if sequence < 0:",
            "    return",
            f"token = tl.load({text.step('starts')} + sequence)",
            f"position = tl.load({text.step('lengths')} + sequence).to(tl.int32) - 1",
            *self._end(),
            f"row = tl.arange(0, {tile.rows})",
            f"head = first_head + tl.minimum(row, {self.count} - 1)  # rows that fill up the tile repeat the last head",
        )
        self.queries()
        self.start()
        self.state()
        visible = ["(k_position < stop)", *([self.visible] if self.visible else [])]
        if self.keys.plain:
            before, limits = self.keys.limits(ends=False)
            add(*before)
            visible += limits
        part = tile.keys // tile.groups
        add(
            f"key = (tl.arange(0, {tile.groups}) * {part})[:, None] + tl.arange(0, {part})[None, :]",
        )
        self.over_blocks("first", "last", " & ".join(visible))
        self.joined()
        real = f"row < {self.count}"
        add("if shares == 1:", f"    {self.factor('(first_head + row)', real)}")
        for acc, chunk in zip(self.accs(), self.value_chunks, strict=True):
            add(f"    {self.store(acc, '(first_head + row)', real, chunk, ('None, :', ':, None'))}")
        add("else:")
        self._merge()

    def _end(self) -> list[str]:
        """Lines that set `stop`, and what else loops need to know of the blocks."""
        if self.lists is not None:
            return ["length = position + 1", "stop = length", *self.of_list("sequence")]
        return self.keys.gap_of_sequence("position + 1", self.tile.keys) if self.keys.apart else ["stop = last"]

    def _merge(self) -> None:
        region, shape, text = self.region, self.shape, self.text
        rows, width = shape.heads, region.value_size
        places = 2 * self.shares.most * self.programs
        partials = text.workspace(self.context.workspace("attention_partials", places * rows * width * 4), "*fp32")
        states = text.workspace(self.context.workspace("attention_states", places * rows * 8), "*fp32")
        counters = text.workspace(self.context.workspace("attention_counters", places * 4), "*i32")
        group, whole = power_of_two(rows), power_of_two(width)
        at_once = max(1, min(16, 8192 // (group * whole)))
        text.add(
            f"    first_place = program * {2 * self.shares.most} + place",
            f"    {self.call('attention', 'store_state')}({states}, first_place + share, top, total, row, {rows})",
        )
        for acc, chunk in zip(self.accs(), self.value_chunks, strict=True):
            column = chunk.columns(f"column_{chunk.width}")
            if chunk.size < chunk.width:
                column = f"tl.where(column_{chunk.width} < {chunk.size}, {column}, {width})"
            store = self.call("attention", "store_values")
            text.add(f"    {store}({partials}, first_place + share, {acc}, row, {column}, {rows}, {width})")
        head, real = "(first_head + each)", f"each < {self.count}"
        text.add(
            f"    if {self.call('attention', 'is_last')}({counters}, first_place, shares):",
            f"        each = tl.arange(0, {group})",
            f"        column_{whole} = tl.arange(0, {whole})",
            f"        all_top, all_total, all_acc = {self.call('attention', 'merge_shares')}(",
            f"            {partials}, {states}, first_place, shares, each, column_{whole}, {rows}, {width}, {at_once})",
            f"        {self.factor(head, real, 'all_')}",
            f"        {self.store('all_acc', head, real, Chunk(0, width, whole), (':, None', 'None, :'))}",
        )
