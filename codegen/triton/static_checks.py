"""What can be said of a kernel's speed from its machine code, as findings: each says what was found and why it is bad.

    examine(binary, traits, level) -> Examination         .findings is empty for a kernel that is as it should be
    traits_of(draft, target, rows) -> Traits              what is expected of a launch for so many rows

Only weights count as what a loop reads: activations come out of a cache. Only the programs that there are count as
resident, so that a launch of one program for each multiprocessor must keep memory busy with one.

Limits follow from each target. 132 multiprocessors of an H200 need 26 to 33 KB each in flight to read 4.8 TB/s at a
latency of 0.7 to 0.9 us. They issue 33 T instructions a second, so that while memory delivers 4.3 TB/s there is time
for 7.7 a byte: for 15.5 instructions a weight of bf16, 8.2 of int8, 4.6 of int4 in groups of 32, whose scales and zeros
are bytes as well. For each byte an A100 has time for 10.6, an L40S for 59 and a B200 for 5.4.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmc.codegen.target import Target
from llmc.codegen.triton.compile import Binary
from llmc.codegen.triton.early_reads import early_reads
from llmc.codegen.triton.kernel import Draft
from llmc.codegen.triton.predict import READ_SHARE
from llmc.codegen.triton.sass import Loop, Machine, bytes_in_flight, read_sass

SHARED_OF_SM = {"sm_80": 164 << 10, "sm_89": 100 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
"""Bytes of shared memory of a multiprocessor."""
SHARED_OF_BLOCK = {"sm_80": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}
"""What a block can have of it; code for sm_80 also runs on 8.6 and, as PTX, on 12.0, where that is less than on 8.0."""
THREADS_OF_SM = {"sm_80": 2048, "sm_89": 1536, "sm_90": 2048, "sm_100": 2048}
REGISTERS_OF_SM, BLOCKS_OF_SM = 65_536, 32
NEEDED_IN_FLIGHT = {"sm_80": 16 << 10, "sm_89": 8 << 10, "sm_90": 32 << 10, "sm_100": 44 << 10}
"""Bytes that a multiprocessor must have asked for to keep the memory busy, of an A100, L40S, H200 and B200: what the
memory gives in 0.8 us."""
CLOCK = {"sm_80": 1.41e9, "sm_89": 2.52e9, "sm_90": 1.98e9, "sm_100": 1.965e9}
"""Cycles a second of an A100, L40S, H200 and B200 while they wait for memory: their boost clocks, as published."""
ISSUED = 128
"""Instructions of a thread that the four schedulers of a multiprocessor issue in a cycle."""
WIDE_SHARE = 0.95
SPILLED_OUTSIDE = 16
"""Bytes of stack that a thread may put away before its loops and take back after them: four registers, written and
read once by a program, which its loops do without."""
LONGEST = 6000
"""Instructions of a kernel that still fit its cache of them well enough."""


@dataclass(frozen=True)
class Traits:
    """What is expected of a kernel."""

    weight_bits: float = 0
    """Bits of a weight that its inner loop reads, with its part of what its group shares; 0 where it reads none."""
    matrix_units: bool = False
    """Whether its inner loop multiplies in tensor cores."""
    most_barriers: int = 2
    """Barriers in the inner loop."""
    constants: frozenset[int] = frozenset()
    """Places of the parameters that may be read before the wait of a dependent launch: weights and tables."""
    pdl: bool = False
    round_bytes: int = 0
    """Bytes of weights, and of what their groups share, that a program reads in a round of its inner loop, through
    buffers in shared memory; 0 where its loads of weights are those that are evicted first."""
    rounds: int = 0
    """Of that loop."""
    stages: int = 0
    """Of its pipeline: one more than the buffers."""
    programs: float = float("inf")
    """Of the launch, for each multiprocessor."""
    hurried: bool = True
    """Whether instructions are counted against the time that reading the weights takes."""


def traits_of(draft: Draft, target: Target, rows: int = 1) -> Traits:
    """What is expected of the kernel of a launch, in a step of so many rows."""
    text = draft.kernel
    constants = frozenset(
        place for place, ref in enumerate(text.refs) if ref.argument is not None and ref.argument.kind == "weight"
    )
    programs = math.prod(extent.at({"T": rows, "R": rows, "B": rows}) for extent in draft.grid) / target.cores
    return Traits(
        text.weight_bits, text.matrix_units, text.most_barriers, constants, text.pdl, text.round_bytes, text.rounds,
        text.stages, programs,
    )  # fmt: skip


@dataclass(frozen=True)
class Examination:
    """The findings on a kernel, and the numbers that they come from."""

    machine: Machine
    blocks_per_sm: int
    in_flight_per_sm: int
    """Bytes of weights on their way while a launch waits for memory, of a kernel without any of all that it reads; 0
    where it has no loop over memory."""
    instructions_a_weight: float
    """In the inner loop, those that half of the lanes do counted twice where they decide; 0 where it reads no weights.
    """
    findings: tuple[str, ...]


def examine(binary: Binary, traits: Traits, level: str) -> Examination:
    """Read the code of a kernel for an NVIDIA target. Raises MissingTool where there is no disassembler."""
    machine = read_sass(binary.code)
    loop = inner_loop(machine, traits)
    blocks = _blocks_per_sm(binary, machine, level)
    in_flight, all_at_once = _in_flight(binary, machine, traits, min(blocks, traits.programs))
    a_weight = 0.0
    if loop is not None and traits.weight_bits:
        weights = _weight_bytes(loop, binary, traits, whole=not machine.loops) * 8 / traits.weight_bits
        a_weight = loop.cycles / weights if weights else float("inf")
    if all_at_once and in_flight < NEEDED_IN_FLIGHT[level]:
        traits = replace(traits, hurried=False)  # what it takes is the way of one load, and what comes before and after
    findings = [
        *_of_the_kernel(binary, machine, level),
        *_of_the_barriers(machine, loop, traits),
        *_of_the_pipeline(machine, loop, traits),
        *_of_the_loop(loop, traits, a_weight, NEEDED_IN_FLIGHT[level] if all_at_once else in_flight, level),
        *_of_the_wait(binary, traits),
    ]
    return Examination(machine, blocks, in_flight, a_weight, tuple(findings))


def time_for(bits: float, level: str) -> float:
    """Instructions of a thread that a target issues while its memory delivers so many bits."""
    target = Target.preset(level)
    bytes_a_second = target.bandwidth.value * READ_SHARE
    return target.cores * ISSUED * CLOCK[level] / bytes_a_second * bits / 8


def inner_loop(machine: Machine, traits: Traits) -> Loop | None:
    """The innermost loop that reads most of global memory, of those that multiply as expected if there are any; all of
    a kernel whose loop is unrolled.
    """
    reading = [loop for loop in machine.loops if _bytes_loaded(loop)]
    loops = [loop for loop in reading if traits.matrix_units and _multiplies(loop)] or reading
    whole = Loop(machine.instructions) if traits.weight_bits or traits.matrix_units else None
    return max(loops, key=_bytes_loaded, default=whole)


def _multiplies(loop: Loop) -> bool:
    """Whether a loop uses tensor cores."""
    return any(item.name in ("HMMA", "HGMMA", "QGMMA", "IMMA", "UTCHMMA", "UTCQMMA") for item in loop.body)


def _loads(loop: Loop) -> list[int]:
    return [item.width for item in loop.body if item.name in ("LDG", "LDGSTS")]


def _bytes_loaded(loop: Loop) -> int:
    return sum(_loads(loop)) + sum(1 << 10 for item in loop.body if item.name in ("UTMALDG", "UBLKCP"))


def _blocks_per_sm(binary: Binary, machine: Machine, level: str) -> int:
    registers = max(machine.registers, 1) * binary.threads
    shared = binary.shared + 1024  # what each block takes for itself
    return max(
        1,
        min(
            BLOCKS_OF_SM,
            THREADS_OF_SM[level] // binary.threads,
            REGISTERS_OF_SM // registers,
            SHARED_OF_SM[level] // shared,
        ),
    )


def _weight_bytes(loop: Loop, binary: Binary, traits: Traits, *, whole: bool) -> float:
    """Bytes of weights that a thread reads in a round of a loop, or in a kernel that has none."""
    if traits.round_bytes:
        return traits.round_bytes * (traits.rounds if whole else 1) / binary.threads
    return sum(item.width for item in loop.body if item.name == "LDG" and ".EF" in item.op)


def _of_all_loads(binary: Binary, machine: Machine, loop: Loop | None, blocks: int) -> int:
    """Bytes of whatever is read that a multiprocessor has asked for."""
    if loop is None:
        return 0
    asynchronous = sum(item.width for item in loop.body if item.name == "LDGSTS") * binary.threads
    if not asynchronous:
        return bytes_in_flight(machine) * binary.threads * blocks
    rounds = max(1, binary.shared // asynchronous - 1)  # buffers in shared memory but the one that is being read
    return asynchronous * rounds * blocks


def _in_flight(binary: Binary, machine: Machine, traits: Traits, resident: float) -> tuple[int, bool]:
    """Bytes of weights that a multiprocessor has asked for, and whether that is all that its programs will read."""
    if not traits.weight_bits:
        return _of_all_loads(binary, machine, inner_loop(machine, traits), int(resident)), True
    if traits.round_bytes:
        ahead = min(traits.rounds, max(1, traits.stages - 1))
        if not machine.loops:
            ahead = traits.rounds  # all loads stand before the first use
        return int(traits.round_bytes * ahead * resident), ahead == traits.rounds and traits.programs <= resident
    evicted = [item for item in machine.instructions if item.name != "LDG" or ".EF" in item.op]
    waiting = bytes_in_flight(replace(machine, instructions=tuple(evicted)))
    return int(waiting * binary.threads * resident), not machine.loops and traits.programs <= resident


def _of_the_kernel(binary: Binary, machine: Machine, level: str) -> Iterator[str]:
    spilled = machine.counts["LDL"] + machine.counts["STL"]
    inside = sum(loop.counts["LDL"] + loop.counts["STL"] for loop in machine.loops)
    if inside or (spilled and machine.stack > SPILLED_OUTSIDE):
        yield f"registers are spilled: {machine.stack} bytes of stack, {spilled} accesses, {inside} of them in loops"
    if binary.shared > SHARED_OF_BLOCK[level]:
        yield f"{binary.shared} bytes of shared memory, {level} has {SHARED_OF_BLOCK[level]} for a block"
    if len(machine.instructions) > LONGEST:
        yield f"{len(machine.instructions)} instructions: a loop was unrolled beyond the cache of instructions"


def _of_the_barriers(machine: Machine, loop: Loop | None, traits: Traits) -> Iterator[str]:
    if loop is None or (traits.most_barriers and len(loop.body) == len(machine.instructions)):
        return  # those of an unrolled loop are as many as its rounds have, and nothing tells how many these are
    if (count := loop.counts["BAR"]) > traits.most_barriers:
        yield f"{count} barriers in the inner loop, at most {traits.most_barriers} are expected"


def _of_the_pipeline(machine: Machine, loop: Loop | None, traits: Traits) -> Iterator[str]:
    """Of a loop whose weights come in the background, everything does: nothing that is small is waited for alone."""
    if loop is not None and traits.round_bytes and machine.loops and loop.counts["LDGSTS"] and loop.counts["LDG"]:
        yield f"{loop.counts['LDG']} loads in the inner loop are not under way while the rounds before are computed"


def _of_the_loop(loop: Loop | None, traits: Traits, a_weight: float, in_flight: int, level: str) -> Iterator[str]:
    if loop is None:
        return
    counts = loop.counts
    if traits.matrix_units and not _multiplies(loop):
        yield "the inner loop multiplies outside of tensor cores"
    waits = sum(item.op.startswith("WARPGROUP.DEPBAR") for item in loop.body)
    if counts["HGMMA"] > 2 and waits >= counts["HGMMA"]:
        yield f"each of {counts['HGMMA']} products of a group of warps is waited for: ptxas found none that may overlap"
    if not traits.weight_bits:
        return
    evicted = [item for item in loop.body if item.name == "LDG" and ".EF" in item.op]
    copies = [item.width for item in loop.body if item.name == "LDGSTS"]
    widths = [item.width for item in evicted] or copies or _loads(loop)
    total, wide = sum(widths), sum(width for width in widths if width == 16)
    if wide < WIDE_SHARE * total and (evicted or traits.weight_bits >= 16):
        yield f"{wide / total:.0%} of the weights that the inner loop reads come in loads of 16 bytes"
    if traits.weight_bits < 16 and (conversions := counts["I2F"] + counts["I2FP"]):
        yield f"{conversions} conversions from integers in the inner loop"
    if traits.hurried and a_weight > (budget := time_for(traits.weight_bits, level)):
        yield f"{a_weight:.2f} instructions a weight of {traits.weight_bits:g} bits, there is time for {budget:.2f}"
    if in_flight < NEEDED_IN_FLIGHT[level]:
        yield f"{in_flight / 1024:.1f} KB in flight on a multiprocessor, {NEEDED_IN_FLIGHT[level] >> 10} are needed"


def _of_the_wait(binary: Binary, traits: Traits) -> Iterator[str]:
    """A kernel that is launched early reads nothing but constants before it waits, and does wait, on every path."""
    if not traits.pdl:
        return
    read = early_reads(binary.assembly)
    if read is None:
        yield "it is launched before its predecessor has ended, and does not wait for it"
        return
    if others := sorted(read - traits.constants):
        yield f"parameters {others} are read before it waits for its predecessor, and are no constants"
    before = binary.assembly.partition("griddepcontrol.wait")[0]
    if re.search(r"\bst\.global|\batom\.global|\bred\.global", before):
        yield "it writes before it waits for its predecessor"
    if re.search(r"\bret;", before):
        yield "it may end before it waits for its predecessor"
