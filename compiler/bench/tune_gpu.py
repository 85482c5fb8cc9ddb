"""Measure on this GPU which variant of each linear is the fastest for how many rows; then the attentions (see
`llmc.bench.tune_attention`).

All launches of one variant of one linear are recorded one after another and replayed, on the weights of all layers, and
on copies of these where they are few: what the chip's caches hold of one weight is gone when its turn comes again.
Mixtures of experts are measured in whole steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from llmc.bench.gpu_kernels import Timed, reads_indices, timed, weight_sizes
from llmc.bench.tune import takeovers
from llmc.bench.tune_attention import SEQUENCES, Measured, ShareTimings, measure_shares
from llmc.runtime.batch import Piece, pack
from llmc.runtime.crossover import NEVER, VARIANTS, Crossover
from llmc.runtime.cuda.device import Place, padded
from llmc.runtime.cuda.plan import ALWAYS, Candidate, Launch, Plan, Product
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.cuda.selection import shares
from llmc.runtime.kv_cache import BlockPool, BlockTable
from llmc.runtime.program import Batch
from llmc.runtime.shares import ShareTable

ROWS = (1, 2, 3, 4, 6, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64, 65, 96, 128, 192, 256, 512, 1024, 2048)
"""Numbers of rows that are measured: among them the last of each tile, and the first of the next."""
MOST_LOGITS = 512
"""Rows up to which the linears that make logits are measured."""
ROTATED_BYTES = 256 << 20
"""Weights that are read one after another, at least: twice what the largest cache of a GPU holds."""
MOST_COPIES = 64
EACH = Crossover(2, 9, "to be measured", 17)
"""Crossovers of which each variant serves some rows, so that the program has memory for all of them."""

Timings = dict[int, dict[str, float]]
"""Seconds for all layers by rows and variant."""


@dataclass(frozen=True)
class Tuned:
    """What was found."""

    crossovers: dict[str, Crossover]
    """By linear."""
    timings: dict[str, Timings]
    """Of each linear."""
    shares: dict[str, ShareTable]
    """By attention."""
    share_timings: dict[str, ShareTimings]
    """Of each attention."""

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "crossovers": {linear: asdict(crossover) for linear, crossover in self.crossovers.items()},
            "seconds": {
                linear: {str(rows): taken for rows, taken in timings.items()}
                for linear, timings in self.timings.items()
            },
            "shares": {attention: asdict(table) for attention, table in self.shares.items()},
            "seconds_of_shares": {
                attention: {
                    str(count): {
                        str(length): {str(programs): taken for programs, taken in each.items()}
                        for length, each in by_context.items()
                    }
                    for count, by_context in timings.items()
                }
                for attention, timings in self.share_timings.items()
            },
        }


def measure(
    program: GpuProgram,
    device: Timed,
    *,
    context: int,
    repetitions: int,
    source: str,
    rows: Sequence[int] = ROWS,
    sequences: Sequence[int] = SEQUENCES,
    rotated: int = ROTATED_BYTES,
    progress: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Measure the linears of a program one after another, then its attentions. Afterwards the program uses what was
    found.

    Args:
        program: what is measured.
        device: the program's.
        context: tokens that a sequence may have.
        repetitions: measurements of each variant, of which the median counts; variants take turns.
        source: what is said of where the crossovers come from.
        rows: numbers of rows to measure.
        sequences: numbers of sequences to measure attentions with.
        rotated: bytes of weights, or of keys and values, to read one after another.
        progress: told what is being measured.
    """
    linears = list(dict.fromkeys(each.linear for each in _candidates(program.plan)))
    program.tune(dict.fromkeys(linears, EACH))
    batches = {count: _batch(program, count, context) for count in rows}
    program.allocate(max(len(batch.lengths) for batch in batches.values()), program.block_multiple)
    found: dict[str, Timings] = {}
    for linear in linears:
        progress(linear)
        copies = _copies(program, linear, rotated)
        measured = {
            count: _measured(program, device, linear, batch, copies, repetitions) for count, batch in batches.items()
        }
        found[linear] = {count: seconds for count, seconds in measured.items() if seconds}
    table = {linear: _crossover(program.plan, linear, timings, source) for linear, timings in found.items()}
    program.tune(table)
    shares, share_timings = measure_shares(
        Measured(program, device, repetitions, rotated),
        context=context,
        source=source,
        sequences=sequences,
        progress=progress,
    )
    program.tune(shares)
    return Tuned(table, found, shares, share_timings)


def _measured(
    program: GpuProgram,
    device: Timed,
    linear: str,
    batch: Batch,
    copies: Sequence[Mapping[str, Place]],
    repetitions: int,
) -> dict[str, float]:
    """Median seconds of each variant that takes the rows of a batch."""
    sizes, arrays = program.arranged(batch)
    program.run(program.plan.launches, sizes, arrays)  # so that all read numbers as they occur
    graphs = {}
    for variant, launches in _variants(program.plan, linear, len(batch.tokens), sizes):

        def record(launches: Sequence[Launch | Product] = launches) -> None:
            for places in copies:
                program.weights.update(places)
                program.run(launches, sizes, arrays)

        graphs[variant] = device.capture(record)
    return timed(device, graphs, repetitions)


def _variants(
    plan: Plan, linear: str, rows: int, sizes: Mapping[str, int]
) -> Iterator[tuple[str, list[Launch | Product]]]:
    """The variants of a linear that take so many rows, with their launches in all layers that have them in the step, or
    with whole steps where those cannot be by themselves.
    """
    others = {place: each for place, each in enumerate(plan.launches) if _variant(each, linear) is None}
    for variant in VARIANTS:
        mine = {place: each for place, each in enumerate(plan.launches) if _variant(each, linear) == variant}
        if all(launch.when.most == 0 for launch in mine.values()):
            continue  # there is no such variant, or it cannot run here
        able = {
            place: replace(launch, when=ALWAYS)
            for place, launch in mine.items()
            if sizes[launch.when.symbol] == rows and _takes(launch.candidate, rows)
        }
        if able:
            chosen = {**others, **able} if reads_indices(plan, able.values()) else able
            yield variant, [chosen[place] for place in sorted(chosen)]


def _variant(launch: Launch | Product, linear: str) -> str | None:
    """The variant of a linear that a launch belongs to."""
    candidate = launch.candidate
    return candidate.variant if candidate is not None and candidate.linear == linear else None


def _takes(candidate: Candidate | None, rows: int) -> bool:
    assert candidate is not None, "it belongs to a variant"
    return candidate.least <= rows and (candidate.most is None or rows <= candidate.most)


def _candidates(plan: Plan) -> list[Candidate]:
    return [launch.candidate for launch in plan.launches if launch.candidate is not None]


def _copies(program: GpuProgram, linear: str, rotated: int) -> list[dict[str, Place]]:
    """Where the weights of a linear lie, of all layers: in copies, and last where the program has them."""
    plan = program.plan
    launches = [each for each in plan.launches if each.candidate is not None and each.candidate.linear == linear]
    names = {argument.name for launch in launches for argument in launch.arguments if argument.kind == "weight"}
    sizes = {name: size for name, size in weight_sizes(plan).items() if name in names}
    total = sum(padded(size) for size in sizes.values())
    copies = min(MOST_COPIES, -(-rotated // total)) - 1
    own = {name: program.weights[name] for name in sizes}
    found = []
    for _ in range(copies):
        memory, offset, places = program.device.allocate(total, zeroed=False), 0, dict[str, Place]()
        for name, size in sizes.items():
            places[name] = Place(memory, offset)
            program.device.copy(own[name], places[name], size)
            offset += padded(size)
        found.append(places)
    return [*found, own]


def _crossover(plan: Plan, linear: str, timings: Timings, source: str) -> Crossover:
    """The crossovers that timings speak for, each where its variant really takes over."""
    _, flat, gemm, library = takeovers(timings, VARIANTS, NEVER)
    launches = [each for each in plan.launches if each.candidate is not None and each.candidate.linear == linear]
    served = shares(
        [each.candidate for each in launches if each.candidate is not None and each.region == launches[0].region],
        Crossover(flat, gemm, source, library),
    )
    starts = [NEVER]
    for variant in reversed(VARIANTS):
        starts.insert(0, served[variant][0] if variant in served else starts[0])
    return Crossover(starts[1], starts[2], source, starts[3])


def _batch(program: GpuProgram, rows: int, context: int) -> Batch:
    """A step of so many new tokens, with logits after each unless they are many, of as many sequences as it takes."""
    wanted: Literal["last", "all"] = "all" if rows <= MOST_LOGITS else "last"
    longest = min(program.block_multiple, context)
    lengths = [min(longest, rows - begin) for begin in range(0, rows, longest)]
    tokens = np.random.default_rng(rows).integers(0, program.plan.vocabulary, rows).tolist()
    pool = BlockPool(len(lengths), program.block_multiple)
    pieces = [
        Piece(tokens[place * longest : place * longest + length], BlockTable(pool), wanted)
        for place, length in enumerate(lengths)
    ]
    return pack(pieces).batch
