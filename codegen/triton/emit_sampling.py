"""Kernels that choose the next tokens on the device and make the arrays of the next step of them."""

from llmc.codegen.triton.context import Context
from llmc.codegen.triton.kernel import Draft, KernelText
from llmc.runtime.cuda.plan import ONE, Extent

PART = 4096
"""Logits of a program that looks for the greatest."""
BLOCK = 2048
"""Logits that a program which chooses looks at at once."""
ENDS = 8
"""Tokens that can end a sequence."""


def emit_sampling(context: Context) -> list[Draft]:
    """The launches after the last region of a step: partial maxima of each row of logits, then a token for each row."""
    parts = -(-context.vocabulary // PART)
    return [_partial_maxima(context, parts), _choice(context, parts)]


def _kernel(context: Context, comment: str, warps: int) -> KernelText:
    kernel = KernelText("sampling", comment, warps=warps, pdl=context.pdl)
    if context.pdl:
        kernel.add("tl.extra.cuda.gdc_wait()", "tl.extra.cuda.gdc_launch_dependents()")
    return kernel


def _logits(kernel: KernelText) -> str:
    return kernel.argument("logits", "logits", "*fp32")


def _partial_maxima(context: Context, parts: int) -> Draft:
    size = context.vocabulary
    kernel = _kernel(context, f"the greatest of each {PART} logits of a row", 8)
    maxima = kernel.workspace(context.workspace("maxima", 0, parts * 8), "*i64")
    kernel.add(
        "row = tl.program_id(0).to(tl.int64)",
        f"start = tl.program_id(1) * {PART}",
        f"stop = tl.minimum(start + {PART}, {size})",
        f"best = {kernel.call('sampling', 'greatest')}({_logits(kernel)} + row * {size}, start, stop, {BLOCK})",
        f"tl.store({maxima} + row * {parts} + tl.program_id(1), best)",
    )
    return Draft(kernel, (Extent("B"), Extent(times=parts), ONE))


def _choice(context: Context, parts: int) -> Draft:
    kernel, size = (
        _kernel(context, "the next token of each sequence that goes on, and where it goes", 16),
        context.vocabulary,
    )
    blocks = 1 << (-(-size // BLOCK) - 1).bit_length()
    maxima = kernel.workspace(context.workspace("maxima", 0, parts * 8), "*i64")
    sums = kernel.workspace(context.workspace("block_weights", 0, blocks * 8), "*fp64")
    call, step = kernel.call, kernel.step
    padded = 1 << (parts - 1).bit_length()

    def real(name: str, offset: str = "row") -> str:
        return f"tl.load({step(name)} + {offset}).to(tl.float64, bitcast=True)"

    kernel.add(
        "row = tl.program_id(0).to(tl.int64)",
        f"left = tl.load({step('remaining')} + row)",
        f"count = tl.load({step('made')} + row)",
        f"place = row * tl.load({step('horizon')}) + count",
        f"part = tl.arange(0, {padded})",
        f"best = tl.max(tl.load({maxima} + row * {parts} + part, mask=part < {parts}, other=-0x8000000000000000))",
        f"top = {call('ranking', 'ranked_value')}(best)",
        f"token = {call('ranking', 'ranked_index')}(best)",
        f"temperature = {real('temperatures')}",
        "if (left > 0) & (temperature > 0.0) & (top - top == 0.0):",
        "    scale = tl.maximum(temperature.to(tl.float32), 1e-30)",
        f"    token = {call('sampling', 'draw')}(",
        f"        {_logits(kernel)} + row * {size}, top, scale, tl.load({step('top_ks')} + row), {real('top_ps')},",
        f"        {real('min_ps')}, {real('uniforms', 'place')}, {sums} + row * {blocks}, {size}, {BLOCK}, {blocks},",
        "    ).to(tl.int64)",
        "if (left > 0) & (top - top != 0.0):  # not finite",
        f"    tl.store({step('chosen')} + place, -2)",
        f"    tl.store({step('remaining')} + row, 0)",
        "elif left > 0:",
        f"    end = tl.load({step('ends')} + row * {ENDS} + tl.arange(0, {ENDS}))",
        "    left = tl.where(tl.sum((end == token).to(tl.int32)) > 0, 0, left - 1)",
        f"    tl.store({step('chosen')} + place, token)",
        f"    tl.store({step('made')} + row, count + 1)",
        f"    tl.store({step('remaining')} + row, left)",
        "    if left > 0:",
        f"        position = tl.load({step('positions')} + row) + 1",
        f"        block = tl.load({step('blocks')} + row * {kernel.size('M')} + position // {context.block_size})",
        f"        tl.store({step('tokens')} + row, token)",
        f"        tl.store({step('positions')} + row, position)",
        f"        tl.store({step('lengths')} + row, tl.load({step('lengths')} + row) + 1)",
        f"        tl.store({step('slots')} + row, block * {context.block_size} + position % {context.block_size})",
    )
    return Draft(kernel, (Extent("B"), ONE, ONE))
