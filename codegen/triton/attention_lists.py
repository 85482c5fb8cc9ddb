"""Lists of the blocks of keys that queries see, for masks that are no ranges of keys: made once a step, by the first
attention with such a mask, and used by all layers.

The mask's formula itself is evaluated for all keys, tables included. A list belongs to a sequence in decode steps, to a
tile of tokens in others. An entry holds where a block begins and the block of the cache that it is in, so that loops
over lists look up as much as those over ranges. A sequence that is longer than lists are has all of its blocks visited.
"""

from dataclasses import dataclass

import torch

from llmc.codegen.key_ranges import FAR, key_ranges
from llmc.codegen.layout import Buffer
from llmc.codegen.regions import Attention
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_mask import Formula, position_type
from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.ir.mask import evaluate
from llmc.runtime.cuda.plan import ONE, Extent, When

MOST_KEYS = 1 << 17
"""Keys of a sequence that lists have room for."""
_SAMPLED_TOKENS, _SAMPLED_TILE = (8192, 2048, 512), 16
_LEAST_EMPTY = 0.125
"""The fraction of blocks that must be empty for lists to be worth a launch a step, and a look at each entry."""


@dataclass(frozen=True)
class Lists:
    """The lists of one kind of attention's steps, in the arena."""

    entries: Buffer
    counts: Buffer
    """Keys of the blocks in each list."""

    @property
    def width(self) -> int:
        """Entries of a list."""
        return self.entries.width


def empty_blocks(mask: str, tables: list[torch.Tensor], heads: int, keys: int) -> float:
    """The fraction of blocks of so many keys that none of 16 tokens sees in any head, of those in the mask's ranges; in
    a sequence of 8192 tokens, or of fewer where tables have no more, around its middle and at its end."""
    for length in _SAMPLED_TOKENS:
        try:
            return _empty_blocks(mask, tables, heads, keys, length)
        except IndexError:
            continue
    return 0.0


def _empty_blocks(mask: str, tables: list[torch.Tensor], heads: int, keys: int, length: int) -> float:
    found = key_ranges(mask, heads)
    visited = empty = 0
    k = torch.arange(length)[None, None, :]
    h = torch.arange(heads if "h" in mask else 1)[:, None, None]
    for end in (length // 2 + keys // 2, length):
        q = torch.arange(end - _SAMPLED_TILE, end)[None, :, None]

        def value(formula: str | None, default: int, q: torch.Tensor = q) -> torch.Tensor:
            return torch.tensor(default) if formula is None else evaluate(formula, q, k, h, [], torch.float32)

        inside = torch.zeros(1, _SAMPLED_TILE, length, dtype=torch.bool)
        for each in found.ranges:
            inside |= (k >= value(each.low, 0)) & (k <= value(each.high, FAR))
        seen = (evaluate(mask, q, k, h, tables, torch.float32) & inside).expand(len(h), *inside.shape[1:])
        reached, some = (each.flatten(0, 1).any(0).unflatten(0, (-1, keys)).any(1) for each in (inside, seen))
        visited += int(reached.sum())
        empty += int((reached & ~some).sum())
    return empty / max(visited, 1)


def listed(mask: str, tables: list[torch.Tensor], heads: int) -> bool:
    """Whether steps of a mask make lists."""
    unknown = not key_ranges(mask, heads).exact
    return unknown and max(empty_blocks(mask, tables, heads, keys) for keys in (64, 128)) >= _LEAST_EMPTY


def lists_of(region: Attention, context: Context, kind: str, keys: int) -> Lists:
    """The lists of an attention's "decode" or "prefill", in blocks of so many keys: the same for equal masks."""
    tables = " ".join(view.buffer.name for view in region.tables)
    name = f"{kind} {keys} {region.mask} {tables}"
    width = MOST_KEYS // keys
    return Lists(
        context.passed(f"lists of {name}", "T", width, "i64"), context.passed(f"counts of {name}", "T", 1, "i64")
    )


def list_drafts(region: Attention, context: Context, kind: str, keys: int, tokens: int) -> list[Draft]:
    """The launches that make them, before the first attention that uses them; none before others.

    tokens: of a tile, where the step is no decode step.
    """
    lists = lists_of(region, context, kind, keys)
    if lists.entries.key in context.listing:
        return []
    context.listing.add(lists.entries.key)
    text = KernelText(
        f"attention_{kind}_blocks",
        f"blocks of {keys} keys that the queries of a {'sequence' if kind == 'decode' else 'tile'} see: {region.mask}",
        warps=8,
        pdl=context.pdl,
        most_barriers=16,
    )
    if text.pdl:
        text.add("tl.extra.cuda.gdc_wait()", "tl.extra.cuda.gdc_launch_dependents()")
    grid: Extent
    whens: tuple[When, ...]
    if kind == "decode":
        grid, whens = Extent("B"), (When(decode=True), When("B", 2, decode=False))
        text.add(
            "sequence = tl.program_id(0)",
            "row = sequence",
            f"token = tl.load({text.step('starts')} + sequence)",
            "tokens = 1",
            f"alone = tl.load({text.step('starts')} + sequence + 1) == token + 1",
        )
    else:
        grid, whens = Extent("T", per=tokens, plus="B"), (When(decode=False),)
        text.add(
            f"sequence, token, last = {text.call('attention', 'find_tile')}"
            f"({text.step('starts')}, {text.size('B')}, tl.program_id(0), {tokens})",
            "if token >= last:",
            "    return",
            "row = token",
            f"tokens = tl.minimum(last - token, {tokens}).to(tl.int32)",
            "alone = token >= 0",
        )
    _listing(text, region, lists, keys, context.block_size)
    return [Draft(text, (grid, ONE, ONE), when) for when in whens]


def _listing(text: KernelText, region: Attention, lists: Lists, keys: int, size: int) -> None:
    """The body: blocks in groups, whose entries follow those of the groups before."""
    group = 4096 // keys
    entries, counts = text.pointer(lists.entries, "lists"), text.pointer(lists.counts, "counts")
    formula = Formula(text, region.tables)
    visible = formula.predicate(region.mask)
    by_head, whole = "h" in region.mask, position_type(region.mask)
    text.add(
        f"length = tl.load({text.step('lengths')} + sequence).to(tl.int32)",
        f"table = {text.step('blocks')} + sequence * {text.size('M')}",
        f"place = {entries} + row.to(tl.int64) * {lists.width}",
        f"short = alone & (length <= {MOST_KEYS})",
        "count = length * 0",
        f"for first in tl.range(0, tl.where(short, tl.cdiv(length, {keys}), 0), {group}):",
        f"    number = first + tl.arange(0, {group})",
        f"    k_position = number[:, None] * {keys} + tl.arange(0, {keys})[None, :]",
        f"    k = k_position.to({whole})",
        f"    seen = tl.zeros(({group},), tl.int32)",
        "    for each in tl.range(0, tokens):",
        f"        q = tl.load({text.step('positions')} + token + each).to({whole})",
    )
    inner = "        "
    if by_head:
        text.add(f"        for head in tl.range(0, {region.heads}):", f"            h = tl.cast(head, {whole})")
        inner += "    "
    text.add(
        *(inner + line for line in formula.before),
        f"{inner}seen = tl.maximum(seen, tl.max((({visible}) & (k_position < length)).to(tl.int32), 1))",
        f"    at = tl.minimum(number * {keys}, length - 1)",
        f"    entry = (tl.load(table + at // {size}) << 32) | at",
        "    tl.store(place + count + tl.cumsum(seen, 0) - 1, entry, mask=seen > 0)",
        "    count += tl.sum(seen, 0)",
        "tl.store(place, tl.load(table) << 32, mask=count == 0)  # looked at, not visited",
        f"count = tl.where(alone & (length > {MOST_KEYS}), tl.cdiv(length, {keys}), count)",
        f"tl.store({counts} + row, (count * {keys}).to(tl.int64))",
    )
