"""The kernels of a compiled program for people: which serve which layers, what they cost, and why not others."""

from collections.abc import Iterable, Iterator, Mapping

from llmc.cli.output import duration, size
from llmc.codegen.explanation import KernelRecord, ProgramExplanation, RegionRecord, Work
from llmc.runtime.crossover import NEVER, VARIANTS, Crossover
from llmc.runtime.shares import Shares

COLUMNS = ("kernel", "regions", "where", "what")
"""The first columns of the table; two or three for each step follow."""


def table(program: ProgramExplanation) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table of kernels: a row for each kernel and place in the layers, in the order of running.

    Times are those of all regions of the row together; measured ones are shown where there are any.
    """
    shown = [name for name in program.steps if any(name in region.work for region in program.regions)]
    measured = {name for name in shown if any(_work(region, name).measured is not None for region in program.regions)}
    columns = list(COLUMNS)
    for name in shown:
        columns += [name, "predicted", *(["measured"] if name in measured else []), "moved"]
    rows: list[list[object]] = []
    for kernel, place, regions in _groups(program):
        row: list[object] = [kernel.name, len(regions), place, f"{kernel.shape}: {' + '.join(kernel.fused)}"]
        for name in shown:
            work = [_work(region, name) for region in regions]
            row += [_variant(kernel, _rows(program, regions[0], name)), _time(item.predicted for item in work)]
            if name in measured:
                row.append(_time(item.measured or 0.0 for item in work))
            row.append(size(sum(item.bytes for item in work)))
        rows.append(row)
    return columns, rows


def crossovers(program: ProgramExplanation, table: Mapping[str, Crossover]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table of crossovers of a program's linears, each with where it comes from."""
    used = dict.fromkeys(kernel.tuned_as for kernel in program.kernels)
    columns = ["linear", *(f"{variant} from" for variant in VARIANTS[1:]), "source"]
    return columns, [
        [name, *("never" if rows >= NEVER else rows for rows in table[name].starts[1:]), table[name].source]
        for name in used
        if name in table
    ]


def shares(table: Mapping[str, Shares]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table of attentions: over how many programs each divides the keys of a decode step, from
    so many sequences on, and where that comes from."""
    columns = ["attention", "programs by sequences", "at most", "source"]
    return columns, [[name, str(each), each.most, each.source] for name, each in table.items()]


def heading(program: ProgramExplanation) -> Iterator[str]:
    """What precedes the table: how many regions, in which loops, in how much memory, and the totals."""
    yield f"kernels: {len(program.kernels)} for {len(program.regions)} regions; arena {program.memory}"
    for loop in program.loops:
        yield f"  loop: regions {loop.start} to {loop.start + loop.period - 1}, {loop.count} times"
    for kernel in program.kernels:
        if kernel.kind == "torch":
            why = dict.fromkeys(reason for use in kernel.variants for _, reason in use.others)
            regions = sum(region.kernel == kernel.name for region in program.regions)
            yield f"  {kernel.name}: torch computes {' + '.join(kernel.fused)} in {regions} regions: {'; '.join(why)}"
    yield f"  predicted for {program.target}"
    for name, sizes in program.steps.items():
        work = [_work(region, name) for region in program.regions]
        took = [item.measured for item in work if item.measured is not None]
        text = f"  {name} ({sizes.tokens} tokens, {sizes.context} keys each): {_time(item.predicted for item in work)}"
        yield f"{text}, measured {_time(took)}" if took else text


def reasons(program: ProgramExplanation) -> Iterator[str]:
    """For each kernel, where it stands in the source, the variant for each range of rows, and why not the others."""
    for kernel in program.kernels:
        first = next(region for region in program.regions if region.kernel == kernel.name)
        yield f"{kernel.name} (line {kernel.line} of the generated source), first for {', '.join(first.nodes)}"
        for use in kernel.variants:
            yield f"  {use.rows}: {use.variant}"
            yield from (f"    not {name}: {reason}" for name, reason in use.others)
        notes: dict[str, list[str]] = {}
        for region in program.regions:
            if region.kernel == kernel.name and region.note:
                notes.setdefault(region.note, []).append(region.origin.partition(" at ")[0])
        yield from (f"  {', '.join(places)}: {note}" for note, places in notes.items())


def _groups(program: ProgramExplanation) -> Iterator[tuple[KernelRecord, str, list[RegionRecord]]]:
    groups: dict[tuple[str, str], list[RegionRecord]] = {}
    for region in program.regions:
        groups.setdefault((region.kernel, region.place), []).append(region)
    for (kernel, place), regions in groups.items():
        yield program.kernel(kernel), place, regions


def _work(region: RegionRecord, step: str) -> Work:
    return region.work.get(step, Work(0.0, 0.0, 0.0))


def _rows(program: ProgramExplanation, region: RegionRecord, step: str) -> int:
    sizes = program.steps[step]
    return sizes.rows if region.on_logits else sizes.tokens


def _variant(kernel: KernelRecord, rows: int) -> str:
    return next((use.variant for use in kernel.variants if use.serves(rows)), "")


def _time(seconds: Iterable[float]) -> str:
    total = sum(seconds)
    return f"{total * 1e6:.1f} us" if total < 1e-3 else duration(total)
