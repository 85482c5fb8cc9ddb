"""How long each kernel of a decode step takes on the GPU, beside the bytes of weights that it reads."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from llmc.runtime.cuda.device import Graph
from llmc.runtime.cuda.plan import Launch, Plan, Product
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.program import Batch

REPLAYS, REPETITIONS = 10, 7
LEAST_SECONDS, MOST_REPLAYS = 2e-3, 16
"""A measurement takes so long, or so many replays."""
LINEAR = "linear"
"""What the names of kernels begin with that read all of their weights."""

_Key = TypeVar("_Key")


class Timed(Protocol):
    """A device that can tell how long its work takes."""

    def measure(self, work: Callable[[], None]) -> float:
        """Seconds that the GPU takes for what `work` asks for."""

    def capture(self, record: Callable[[], None]) -> Graph:
        """Record launches."""


@dataclass(frozen=True)
class KernelTime:
    """One kernel in a decode step."""

    kernel: str
    launches: int
    weight_bytes: int
    """Read by all of its launches; 0 if it is no linear."""
    seconds: float
    """For all of its launches, one after another."""


def kernel_times(program: GpuProgram, device: Timed, sequences: int, position: int) -> list[KernelTime]:
    """Each kernel of a step of `sequences` sequences whose token is at `position`, by itself; and the whole step last.

    `device` is the program's. All launches of a kernel run one after another, on the weights and caches of all layers,
    so that what the chip's caches hold of one launch is of no use to the next.
    """
    blocks = position // program.block_multiple + 1
    program.allocate(sequences * blocks, program.block_multiple)
    batch = decode_batch(sequences, position, program.block_multiple)
    program.step(batch)
    sizes, arrays = program.prepared(batch)
    taken = [launch for launch in program.plan.launches if launch.when.holds(sizes)]
    names = dict.fromkeys(_name(launch) for launch in taken)
    groups = {name: [launch for launch in taken if _name(launch) == name] for name in names}
    stored = weight_sizes(program.plan)

    def seconds(launches: Sequence[Launch | Product]) -> float:
        graph = device.capture(lambda: program.run(launches, sizes, arrays))

        def replay() -> None:
            for _ in range(REPLAYS):
                graph.replay()

        replay()
        return statistics.median(device.measure(replay) for _ in range(REPETITIONS)) / REPLAYS

    found = [KernelTime(name, len(group), _bytes(group, stored), seconds(group)) for name, group in groups.items()]
    total = sum(time.weight_bytes for time in found)
    return [*found, KernelTime("the whole step", len(taken), total, seconds(taken))]


def weight_sizes(plan: Plan) -> dict[str, int]:
    """Bytes of each weight, as kernels read it."""
    stored = dict(zip(plan.weights, plan.weight_bytes, strict=True))
    return stored | {each.weight: each.bytes for each in plan.rearrangements}


def timed(device: Timed, graphs: Mapping[_Key, Graph], repetitions: int) -> dict[_Key, float]:
    """Median seconds of each of some recordings, which take turns."""
    replays = {}
    for variant, graph in graphs.items():
        graph.replay()
        replays[variant] = min(MOST_REPLAYS, 1 + int(LEAST_SECONDS / max(device.measure(graph.replay), 1e-9)))
    samples: dict[_Key, list[float]] = {variant: [] for variant in graphs}
    for _ in range(repetitions):
        for variant, graph in graphs.items():

            def replay(graph: Graph = graph, count: int = replays[variant]) -> None:
                for _ in range(count):
                    graph.replay()

            samples[variant].append(device.measure(replay) / replays[variant])
    return {variant: statistics.median(seconds) for variant, seconds in samples.items()}


def reads_indices(plan: Plan, launches: Iterable[Launch | Product]) -> bool:
    """Whether launches read indices from the arena, where something else may lie by the end of a step."""
    types = {kernel.name: [type for _, type in kernel.parameters] for kernel in plan.kernels}
    return any(
        argument.kind == "arena" and type == "*i64"
        for launch in launches
        if isinstance(launch, Launch)
        for argument, type in zip(launch.arguments, types[launch.kernel], strict=True)
    )


def decode_batch(sequences: int, position: int, block_size: int) -> Batch:
    """A step of one token each at `position`, in blocks that follow each other."""
    blocks = position // block_size + 1
    table = np.arange(sequences * blocks, dtype=np.int64).reshape(sequences, blocks)
    return Batch(
        tokens=np.arange(sequences, dtype=np.int64),
        positions=np.full(sequences, position, np.int64),
        slots=table[:, -1] * block_size + position % block_size,
        starts=np.arange(sequences + 1, dtype=np.int64),
        lengths=np.full(sequences, position + 1, np.int64),
        blocks=table,
        rows=np.arange(sequences, dtype=np.int64),
    )


def _name(launch: Launch | Product) -> str:
    return launch.name if isinstance(launch, Product) else launch.kernel


def _bytes(launches: Sequence[Launch | Product], stored: dict[str, int]) -> int:
    """Bytes of the weights that launches of a linear are given, as they are stored."""
    linears = [launch for launch in launches if isinstance(launch, Product) or launch.kernel.startswith(LINEAR)]
    arguments = [argument for launch in linears for argument in launch.arguments]
    return sum(stored[argument.name] for argument in arguments if argument.kind == "weight")
