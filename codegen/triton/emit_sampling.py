"""Kernels that choose the next tokens on the device and make the arrays of the next step of them.

A row of logits is divided over programs. The last of them to come to its end joins what they found: it takes the
likeliest token, or draws one from all, in the first launch already. Where top-k, top-p or min-p rule tokens out first,
two more launches follow, which other steps pass over: one adds up how much tokens weigh by their distance from the
likeliest, one finds the limits and draws (see `library/limits.py`).

Numbers for drawing come from the host, so that a seed gives the same tokens there and here. Drawing by the greatest of
logits with Gumbel noise would need no sums, but a number for each token of the vocabulary, from the same generator on
the host; it would save the last program one more look at one part, 1 to 2 us a step.
"""

from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.runtime.cuda.plan import ALWAYS, ONE, Extent, When
from llmc.runtime.decoding import MOST_ENDS
from llmc.runtime.sample import MAX_LOGPROBS

PART = 2048
"""Logits of a program; fewer where the vocabulary is smaller."""
ROOM = 8192
"""Tokens in the list of those that are not surely kept or ruled out."""
BLOCK = 512
"""Tokens of the list that are looked at at once."""
BINS = 2048
"""See `library/limits.py`."""
STATE = 16
"""Numbers in a row's state: those that `library/limits.py` tells of, and at `TOP` the rank of the greatest score."""
TOP = 8
LIMITED = When("F")
"""Where a row is drawn from and top-k, top-p or min-p is on."""


def emit_sampling(context: Context) -> list[Draft]:
    """The launches after the last region of a step."""
    return [
        _Choice(context, "what parts of the logits hold; a token for each sequence without limits").unlimited(),
        _Choice(context, "how much tokens weigh by their distance from the likeliest").weighed(),
        _Choice(context, "a token within the limits").limited(),
    ]


class _Choice:
    """One of the kernels: what all begin with, and what two of them end with."""

    def __init__(self, context: Context, comment: str) -> None:
        self.context, self.size = context, context.vocabulary
        self.part = min(PART, 1 << (self.size - 1).bit_length())
        self.parts = -(-self.size // self.part)
        self.padded = 1 << (self.parts - 1).bit_length()
        self.text = KernelText("sampling", comment, warps=8, stages=2, pdl=context.pdl)
        self.add, self.call, self.step = self.text.add, self.text.call, self.text.step
        if context.pdl:
            self.add("tl.extra.cuda.gdc_wait()", "tl.extra.cuda.gdc_launch_dependents()")
        logits = self.text.argument("logits", "logits", "*fp32")
        # What can be loaded is loaded before anything is decided: each wait for memory is a part of the step.
        self.add(
            "row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)",
            f"logits_row, seen_row = {logits} + row * {self.size}, {self.step('seen')} + row * {-(-self.size // 64)}",
            f"member = part * {self.part} + tl.arange(0, {self.part})",
            f'plain = tl.load(logits_row + member, mask=member < {self.size}, other=float("-inf"))',
            f"left = tl.load({self.step('remaining')} + row)",
            f"temperature, penalty = {self._real('temperatures')}, {self._real('penalties')}.to(tl.float32)",
            f"top_k, top_p = tl.load({self.step('top_ks')} + row), {self._real('top_ps')}",
            f"min_p = {self._real('min_ps')}",
            f"counting = (top_k > 0) & (top_k < {self.size})",
            "limited = (temperature > 0.0) & (counting | (top_p < 1.0) | (min_p > 0.0))",
            "rate = (1.4426950408889634 / tl.maximum(temperature, 1e-30)).to(tl.float32)",
        )

    def _place(self) -> None:
        self.add(
            f"wanted = tl.load({self.step('logprobs')} + row).to(tl.int32)",
            f"count = tl.load({self.step('made')} + row)",
            f"place = row * tl.load({self.step('horizon')}) + count",
        )

    def _scores(self) -> None:
        self.add(f"x = {self.call('sampling', 'penalised')}(plain, seen_row, penalty, member, {self.size})")

    def _real(self, name: str) -> str:
        return f"tl.load({self.step(name)} + row).to(tl.float64, bitcast=True)"

    def _memory(self, name: str, numbers: int) -> str:
        """A row's part of a workspace of int64 numbers."""
        pointer = self.text.workspace(self.context.workspace(name, 0, bytes_per_sequence=8 * numbers), "*i64")
        return f"{pointer} + row * {numbers}"

    def _state(self) -> str:
        return self._memory("choice_state", STATE)

    def _masses(self) -> str:
        return self._memory("part_masses", self.parts)

    def _last(self) -> str:
        pointer = self.text.workspace(self.context.workspace("choice_arrived", 0, bytes_per_sequence=4), "*i32")
        return f"if {self.call('attention', 'is_last')}({pointer}, row, {self.parts}):"

    def _draft(self, when: When = ALWAYS) -> Draft:
        return Draft(self.text, (Extent("B"), Extent(times=self.parts), ONE), when)

    def unlimited(self) -> Draft:
        """The first launch."""
        add, call, size = self.add, self.call, self.size
        self._place()
        add("if left <= 0:", "    return")
        self._scores()
        ranked = f"{self.step('ranked')} + place * {MAX_LOGPROBS + 1}"
        ranks, plain_masses = self._memory("part_ranks", self.parts), self._memory("part_plain_masses", self.parts)
        add(
            f"ranks, masses = {ranks}, {self._masses()}",
            f"likeliest = {self._memory('part_likeliest', self.parts * MAX_LOGPROBS)}",
            f"plain_masses = {plain_masses}",
            f"{call('sampling', 'examine')}(x, member, rate, temperature > 0.0, part, ranks, masses)",
            "if wanted >= 0:",
            f"    {call('sampling', 'examine_plain')}"
            f"(plain, member, wanted, part, likeliest, plain_masses, {size}, {MAX_LOGPROBS})",
            self._last(),
        )
        self._prepare("    ")
        add(
            f"    each = tl.arange(0, {self.padded})",
            f"    best = tl.max(tl.load(ranks + each, mask=each < {self.parts}, other=-0x8000000000000000))",
            f"    top = {call('ranking', 'ranked_value')}(best)",
            "    if top - top != 0.0:  # not finite",
            f"        tl.store({self.step('chosen')} + place, -2)",
            f"        tl.store({self.step('remaining')} + row, 0)",
            "    else:",
            "        if wanted >= 0:",
            f"            {call('sampling', 'merge_plain')}(",
            f"                likeliest, plain_masses, wanted, {ranked} + 1, {self.step('totals')} + place,",
            f"                {self.parts}, {self.padded}, {MAX_LOGPROBS}, {1 << (MAX_LOGPROBS - 1).bit_length()})",
            "        if limited:",
            f"            tl.store({self._state()} + {TOP}, best)",
            "        else:",
            f"            token = {call('ranking', 'ranked_index')}(best)",
            "            if temperature > 0.0:",
            f"                uniform = {self.step('uniforms')} + place",
            f"                token = {call('sampling', 'draw_freely')}(",
            "                    logits_row, seen_row, penalty, rate, uniform, top, ranks, masses,",
            f"                    {size}, {self.part}, {self.parts}, {self.padded}).to(tl.int64)",
        )
        self._take("            ")
        return self._draft()

    def weighed(self) -> Draft:
        """The second launch, where there are limits."""
        self._limited()
        self.add(
            f"counts, masses = {self._memory('bin_counts', BINS)}, {self._memory('bin_masses', BINS)}",
            "if counting | (top_p < 1.0):",
            f"    {self.call('limits', 'fill_bins')}(x, top, rate, counting, counts, masses)",
            self._last(),
            f"    {self.call('limits', 'find_bins')}(counts, masses, counting, top_k, top_p, state)",
        )
        return self._draft(LIMITED)

    def limited(self) -> Draft:
        """The third launch."""
        add, call, size = self.add, self.call, self.size
        self._place()
        add(
            f"k_bin, first = tl.load({self._state()}), tl.load({self._state()} + 3)",
            f"last = tl.load({self._state()} + 4)",
        )
        self._limited()
        add(
            f"masses, listed = {self._masses()}, {self._memory('undecided_tokens', ROOM)}",
            f"unit = {call('sampling', 'mass')}(top, top, rate)",
            "least_mass = tl.maximum((min_p.to(tl.float32) * unit.to(tl.float32)).to(tl.int64), 1)",
            f"{call('limits', 'divide')}(",
            f"    x, member, top, rate, least_mass, k_bin, first, last, part, masses, state + 7, listed, {ROOM})",
            self._last(),
        )
        add(
            f"    uniform = {self.step('uniforms')} + place",
            f"    token = {call('limits', 'draw_within')}(",
            "        (logits_row, seen_row, penalty, rate, top), uniform, least_mass, top_p, state, listed, masses,",
            f"        {size}, {self.part}, {self.parts}, {self.padded}, {ROOM}, {BLOCK}).to(tl.int64)",
        )
        self._prepare("    ")  # not before: there are no registers for it
        self._take("    ")
        return self._draft(LIMITED)

    def _limited(self) -> None:
        self.add(
            f"state = {self._state()}",
            f"top = {self.call('ranking', 'ranked_value')}(tl.load(state + {TOP}))",
            "if (left <= 0) | (limited == 0):",
            "    return",
        )
        self._scores()

    def _prepare(self, indent: str) -> None:
        """The lines that load what `_take` needs, before the token is known."""
        step, block_size = self.step, self.context.block_size
        lines = [
            f"end = tl.load({step('ends')} + row * {MOST_ENDS} + tl.arange(0, {MOST_ENDS}))",
            f"position = tl.load({step('positions')} + row) + 1",
            f"length = tl.load({step('lengths')} + row) + 1",
            f"block_at = {step('blocks')} + row * {self.text.size('M')} + position // {block_size}",
            "block = tl.load(block_at, mask=left > 1, other=0)  # after its last token a sequence may have no block",
        ]
        self.add(*(indent + line for line in lines))

    def _take(self, indent: str) -> None:
        """The lines that take `token`, and set out the next step of a sequence that goes on."""
        step, block_size = self.step, self.context.block_size
        lines = [
            "left = tl.where(tl.sum((end == token).to(tl.int32)) > 0, 0, left - 1)",
            "tl.debug_barrier()  # each warp has loaded what one of them changes",
            f"tl.store({step('chosen')} + place, token)",
            f"tl.store({step('made')} + row, count + 1)",
            f"tl.store({step('remaining')} + row, left)",
            "if wanted >= 0:",
            f"    its_rank = {self.call('ranking', 'rank')}(tl.load(logits_row + token), token.to(tl.int32))",
            f"    tl.store({step('ranked')} + place * {MAX_LOGPROBS + 1}, its_rank)",
            "if penalty != 1.0:",
            "    word = tl.load(seen_row + token // 64)",
            "    tl.debug_barrier()",
            "    tl.store(seen_row + token // 64, word | (tl.full([], 1, tl.int64) << (token % 64)))",
            "if left > 0:",
            f"    tl.store({step('tokens')} + row, token)",
            f"    tl.store({step('positions')} + row, position)",
            f"    tl.store({step('lengths')} + row, length)",
            f"    tl.store({step('slots')} + row, block * {block_size} + position % {block_size})",
        ]
        self.add(*(indent + line for line in lines))
